"""Labels of MAT files."""

import h5py
import numpy as np
import pytest
import scipy.io
from synthetic import N_CLASSES, N_DATABASE

from formats.dataset import load_config
from formats.files import BadInput
from formats.labels import load_labels


class TestLabels:
    def labels(self, dataset):
        config = load_config(dataset.path)
        return load_labels(config, config.test, N_DATABASE)

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
        assert np.array_equal(load_labels(config, config.query, 6).argmax(1), query - 1)

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
