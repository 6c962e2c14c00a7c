"""Labels of MAT files."""

import h5py
import numpy as np
import pytest
import scipy.io
from synthetic import N_CLASSES, N_DATABASE

from formats.dataset import load_config
from formats.files import BadInput
from formats.labels import load_labels, save_labels


class TestLabels:
    def labels(self, dataset):
        config = load_config(dataset.path)
        return load_labels(config, config.test, [N_DATABASE])[0]

    def save(self, dataset, array, name="labels"):
        scipy.io.savemat(dataset.folder / "test.mat", {name: array, "other": np.zeros(3)})

    def test_version_5(self, dataset):
        self.save(dataset, dataset.labels["test"].astype(float))
        assert np.array_equal(self.labels(dataset), dataset.labels["test"])

    def test_version_73_arrives_transposed(self, dataset):
        with h5py.File(dataset.folder / "test.mat", "w") as file:
            file["labels"] = dataset.labels["test"].T
        assert np.array_equal(self.labels(dataset), dataset.labels["test"])

    def test_sparse(self, dataset):
        self.save(dataset, scipy.sparse.csc_matrix(dataset.labels["test"].astype(float)))
        assert np.array_equal(self.labels(dataset), dataset.labels["test"])

    @pytest.mark.parametrize("first", [0, 1])
    @pytest.mark.parametrize("shape", [(-1,), (-1, 1), (1, -1)])
    def test_class_indices(self, dataset, first, shape):
        index = dataset.labels["test"].argmax(1) + first
        self.save(dataset, index.reshape(shape))
        assert np.array_equal(self.labels(dataset), dataset.labels["test"])

    def test_the_base_is_the_datasets_and_not_a_files(self, dataset):
        query = np.array([1, 2, 3, 1, 2, 3])  # 1-based, without a query of class 4
        scipy.io.savemat(dataset.folder / "query.mat", {"labels": query})
        self.save(dataset, dataset.labels["test"].argmax(1) + 1)
        config = load_config(dataset.path)
        assert np.array_equal(load_labels(config, config.query, [6])[0].argmax(1), query - 1)

    def test_activitynet_variables(self, dataset):
        dataset.change(dataset="activitynet")
        self.save(dataset, dataset.labels["test"], "re_label")
        assert np.array_equal(self.labels(dataset), dataset.labels["test"])

    @pytest.mark.parametrize(
        ("array", "name", "message"),
        [
            (np.zeros((N_DATABASE, N_CLASSES)), "labels", "no positive label at all"),
            (np.full((N_DATABASE, N_CLASSES), 2), "labels", "0 and 1 only, found 2"),
            (np.ones((N_DATABASE - 1, N_CLASSES)), "labels", "103 rows, but 104 videos"),
            (np.ones((N_DATABASE, N_CLASSES + 1)), "labels", "5 columns, but num_class is 4"),
            (np.full(N_DATABASE, 9), "labels", r"0\.\.3 or 1\.\.4, found 9 to 9"),
            (np.ones((N_DATABASE, N_CLASSES)), "label", r"no variable 'labels', found \['label', 'other'\]"),
        ],
    )
    def test_wrong_ones_are_named(self, dataset, array, name, message):
        self.save(dataset, array, name)
        with pytest.raises(BadInput, match=message):
            self.labels(dataset)


def matlab73(path, **variables):
    """A MAT file of version 7.3 as MATLAB lays it out: a user block, reversed axes, sparse as a group."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            if scipy.sparse.issparse(value):
                file[f"{name}/jc"] = value.indptr.astype("u8")
                if value.nnz:
                    file[f"{name}/data"], file[f"{name}/ir"] = value.data, value.indices.astype("u8")
                file[name].attrs["MATLAB_sparse"] = np.uint64(value.shape[0])
            else:
                file[name] = value.T
                file[name].attrs["MATLAB_class"] = np.bytes_("char" if value.dtype == "u2" else "double")


class TestVariants:
    """Files that many people have, and what is wrong with some."""

    def labels(self, dataset, split="test", n_videos=(N_DATABASE,)):
        config = load_config(dataset.path)
        return load_labels(config, getattr(config, split), n_videos)

    def test_sparse_of_version_73(self, dataset):
        expected = dataset.labels["test"].copy()
        expected[3:50] = 0
        matlab73(dataset.folder / "test.mat", labels=scipy.sparse.csc_matrix(expected.astype(float)))
        assert np.array_equal(self.labels(dataset)[0], expected)
        matlab73(dataset.folder / "test.mat", labels=scipy.sparse.csc_matrix((N_DATABASE, N_CLASSES)))
        with pytest.raises(BadInput, match="no positive label at all"):
            self.labels(dataset)

    def test_transposed_ones_are_named(self, dataset):
        with h5py.File(dataset.folder / "test.mat", "w") as file:
            file["labels"] = dataset.labels["test"]
        with pytest.raises(
            BadInput, match="has 104 columns, but num_class is 4: looks transposed, a MAT 7.3"
        ):
            self.labels(dataset)

    @pytest.mark.parametrize("write", [matlab73, lambda path, **variables: scipy.io.savemat(path, variables)])
    def test_the_only_numeric_variable_is_taken_and_named(self, dataset, write):
        path, text = dataset.folder / "test.mat", np.array([[100, 111, 103]], "u2")
        notes = np.array("dog") if write is not matlab73 else text
        write(path, re_label=dataset.labels["test"].astype(float), notes=notes)
        labels, found = self.labels(dataset)
        assert np.array_equal(labels, dataset.labels["test"])
        assert found == [f"{path}: no variable 'labels', its only numeric one is taken: 're_label'"]
        dataset.change(label_variable={"test": "re_label"})
        assert self.labels(dataset)[1] == []
        dataset.change(label_variable="tags")
        with pytest.raises(BadInput, match=r"no variable 'tags', found \['notes', 're_label'\]"):
            self.labels(dataset)

    def test_one_multi_hot_and_one_index_of_unknown_base(self, dataset):
        scipy.io.savemat(dataset.folder / "query.mat", {"labels": np.array([1, 2, 3, 1, 2, 3])})
        with pytest.raises(BadInput, match=r"test.mat: 'labels' is multi-hot, .*query.mat: 'labels' holds"):
            self.labels(dataset, "query", [6])
        scipy.io.savemat(dataset.folder / "query.mat", {"labels": np.array([1, 2, 3, 1, 2, 4])})
        assert self.labels(dataset, "query", [6])[0].argmax(1).tolist() == [0, 1, 2, 0, 1, 3]

    def test_bases_that_contradict_each_other(self, dataset):
        scipy.io.savemat(dataset.folder / "test.mat", {"labels": dataset.labels["test"].argmax(1) + 1})
        scipy.io.savemat(dataset.folder / "query.mat", {"labels": np.array([0, 1, 2, 0, 1, 2])})
        for split, n_videos in (("test", N_DATABASE), ("query", 6)):
            with pytest.raises(BadInput, match=r"query.mat: 'labels' counts .* from 0 .*test.mat: 'labels' "):
                self.labels(dataset, split, [n_videos])

    def test_label_files_in_another_order_than_the_features(self, dataset):
        for name, part in (("1", slice(0, 50)), ("2", slice(50, None))):
            scipy.io.savemat(dataset.folder / f"test{name}.mat", {"labels": dataset.labels["test"][part]})
        dataset.change(test=["a.h5", "b.h5"], test_label=["test1.mat", "test2.mat"])
        assert np.array_equal(self.labels(dataset, n_videos=[50, 54])[0], dataset.labels["test"])
        dataset.change(test_label=["test2.mat", "test1.mat"])
        with pytest.raises(BadInput, match=r"test2.mat: 'labels' has 54 rows, but 50 videos are in .*a.h5"):
            self.labels(dataset, n_videos=[50, 54])
        assert len(self.labels(dataset, n_videos=[N_DATABASE])[0]) == N_DATABASE  # one feature file

    def test_one_kind_in_a_split(self, dataset):
        scipy.io.savemat(dataset.folder / "a.mat", {"labels": np.arange(5) % 4})
        dataset.change(test_label=["test.mat", "a.mat"])
        with pytest.raises(BadInput, match=r"test.mat: 'labels' is multi-hot, .*a.mat: 'labels' holds class"):
            self.labels(dataset, n_videos=[109])


def test_a_base_that_nothing_settles_is_said(dataset):
    for name in ("test", "query", "train"):
        index = np.array([1, 2, 3])[np.arange(len(dataset.labels[name])) % 3]  # of 4 classes
        scipy.io.savemat(dataset.folder / f"{name}.mat", {"labels": index})
    config = load_config(dataset.path)
    labels, notes = load_labels(config, config.test, [N_DATABASE])
    assert labels[0].tolist() == [0, 1, 0, 0]
    assert notes == ["class indices are taken as counted from 0: none of them is 0, nor num_class"]


def test_labels_are_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    for name, when in (("a", "Mon"), ("b", "Tue")):
        monkeypatch.setattr("time.asctime", lambda *_, when=when: when)
        save_labels(tmp_path / name, np.eye(3, dtype=np.uint8))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert np.array_equal(scipy.io.loadmat(tmp_path / "a")["labels"], np.eye(3))


def test_a_dataset_needs_no_labels(dataset):
    dataset.change(num_class=0, train_label="", test_label="", query_label="")
    assert load_config(dataset.path).query.labels == ()
    dataset.change(query_label="query.mat")
    with pytest.raises(BadInput, match="'num_class' must be a positive integer, found 0"):
        load_config(dataset.path)
