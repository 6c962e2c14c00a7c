"""Dataset JSON, feature files, labels, views and the demo set."""

import json

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from conftest import N_CLASSES, N_DATABASE, N_FRAMES, N_TRAIN, ROOT, WIDTH, write_features

import data
from data import (
    BadInput,
    FeatureStore,
    draw_views,
    generator,
    load_config,
    load_labels,
    n_hidden_frames,
    open_store,
)


class TestConfig:
    @pytest.mark.parametrize("name", ["Anet", "fcvid", "yfcc", "demo"])
    def test_shipped_ones_are_valid(self, name):
        from engine.settings import check_blocks

        config = load_config(ROOT / "Json" / f"{name}.json")
        check_blocks(config)
        assert config.run["hidden_size"] in (128, 1024)

    def test_facts_of_the_published_datasets(self):
        facts = {"Anet": (2048, 30, 200), "fcvid": (4096, 25, 239), "yfcc": (4096, 25, 80)}
        for name, expected in facts.items():
            config = load_config(ROOT / "Json" / f"{name}.json")
            assert (config.feature_size, config.max_frames, config.num_class) == expected
            assert config.query_is_database == (name == "fcvid")
        anet = load_config(ROOT / "Json" / "Anet.json")
        assert [split.label_variable for split in (anet.train, anet.test, anet.query)] == [
            "labels",
            "re_label",
            "q_label",
        ]

    def test_published_keys_are_enough(self, dataset):
        del dataset.content["run"], dataset.content["bth"]
        dataset.change()
        assert load_config(dataset.path).run == {}

    def test_paths(self, dataset, monkeypatch):
        monkeypatch.setenv("FEATURES", str(dataset.folder))
        dataset.change(root="$FEATURES", train=["~/a.h5", "b.h5"])
        config = load_config(dataset.path)
        assert config.train.features[1] == dataset.folder / "b.h5"
        assert "~" not in str(config.train.features[0])

    def test_all_problems_at_once(self, dataset):
        del dataset.content["num_class"]
        dataset.change(max_frame=3, max_frames="7", train=5)
        with pytest.raises(BadInput) as error:
            load_config(dataset.path)
        for part in (
            "unknown key 'max_frame' (did you mean 'max_frames'?)",
            "'num_class' is missing",
            "'max_frames' must be a positive integer, found \"7\"",
            "'train' must be a file name",
        ):
            assert part in str(error.value)
        assert "\n" not in str(error.value)


class TestFeatures:
    def store(self, *paths, memory="disk"):
        return FeatureStore(paths, N_FRAMES, WIDTH, memory)

    @pytest.mark.parametrize("memory", ["ram", "disk"])
    @pytest.mark.parametrize("options", [{}, {"chunks": (3, 2, 8), "compression": "gzip"}])
    @pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
    def test_files_read_as_one(self, tmp_path, memory, options, dtype):
        features = np.random.default_rng(0).standard_normal((11, N_FRAMES, WIDTH)).astype(dtype)
        write_features(tmp_path / "a.h5", features[:4], **options)
        write_features(tmp_path / "b.h5", features[4:], **options)
        store = self.store(tmp_path / "a.h5", tmp_path / "b.h5", memory=memory)
        assert len(store) == 11
        rows = np.array([10, 0, 4, 3, 3, 7])
        expected = features[rows].astype(np.float16 if dtype == "<f2" else np.float32)
        read = store.read(rows)
        assert read.dtype == (torch.float16 if dtype == "<f2" else torch.float32)
        assert torch.equal(read, torch.from_numpy(expected))

    def test_not_finite_is_named(self, tmp_path):
        features = np.zeros((5, N_FRAMES, WIDTH), np.float32)
        write_features(tmp_path / "a.h5", features)
        features[2, 3, 1] = np.nan
        write_features(tmp_path / "b.h5", features)
        store = self.store(tmp_path / "a.h5", tmp_path / "b.h5")
        store.read(np.array([0, 6]))
        with pytest.raises(BadInput, match="b.h5: video 2, frame 3: not finite"):
            store.read(np.array([7]))
        with pytest.raises(BadInput, match="b.h5: video 2, frame 3: not finite"):
            self.store(tmp_path / "a.h5", tmp_path / "b.h5", memory="ram")

    def test_mixed_types_are_named(self, tmp_path):
        write_features(tmp_path / "a.h5", np.zeros((2, N_FRAMES, WIDTH), np.float32))
        write_features(tmp_path / "b.h5", np.zeros((2, N_FRAMES, WIDTH), np.float16))
        with pytest.raises(BadInput, match=r"b.h5: float16, but .*a.h5 is float32"):
            self.store(tmp_path / "a.h5", tmp_path / "b.h5")


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


class TestViews:
    def views(self, n_videos, n_frames, p, *position):
        return draw_views(generator(3346, "train", *position), n_videos, n_frames, p)

    @pytest.mark.parametrize(
        ("n_frames", "p", "hidden"), [(25, 0.9, 22), (30, 0.9, 27), (25, 0.6, 15), (30, 0.6, 18)]
    )
    def test_published_numbers_of_frames(self, n_frames, p, hidden):
        assert n_hidden_frames(n_frames, p) == hidden
        masks = self.views(50, n_frames, p, 0, 0).masks
        assert (masks.sum(-1) == hidden).all()

    def test_views_are_disjoint_where_they_can_be(self):
        masks = self.views(200, 25, 0.6, 0, 0).masks
        assert not (~masks[0] & ~masks[1]).any()
        overlapping = self.views(200, 7, 0.2, 0, 0).masks  # V = 6 of 7: both see at least 5 of the same
        assert ((~overlapping[0] & ~overlapping[1]).sum(-1) == 5).all()

    def test_frames_are_visible_equally_often(self):
        visible = ~self.views(20000, 10, 0.7, 0, 0).masks  # V = 3
        for view in visible:
            rate = view.float().mean(0)
            assert (rate - 0.3).abs().max() < 5 * (0.3 * 0.7 / 20000) ** 0.5
        both = (visible[0][:, 0] & visible[1][:, 1]).float().mean()  # 3/10 * 3/9
        assert abs(both - 0.1) < 5 * (0.1 * 0.9 / 20000) ** 0.5

    def test_a_function_of_the_place(self):
        first, again, other = (
            self.views(30, 10, 0.5, 4, 1),
            self.views(30, 10, 0.5, 4, 1),
            self.views(30, 10, 0.5, 4, 2),
        )
        assert np.array_equal(first.order, again.order)
        assert torch.equal(first.masks, again.masks)
        assert not torch.equal(first.masks, other.masks)
        assert sorted(first.order) == list(range(30))
        assert not np.array_equal(first.order, other.order)


class TestDemo:
    def test_is_deterministic_and_shows_the_class_over_frames(self, tmp_path, monkeypatch):
        monkeypatch.setattr(data, "DEMO_VIDEOS", {"train": 40, "test": 60, "query": 40})
        content = json.loads((ROOT / "Json" / "demo.json").read_text())
        written = []
        for name in ("a", "b"):
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(content | {"root": str(tmp_path / name)}))
            config = load_config(path)
            data.make_demo(config)
            store = open_store(config, config.test, "ram", "cpu")
            written.append((store.read(np.arange(60)), load_labels(config, config.test, 60)))
        assert torch.equal(written[0][0], written[1][0])
        assert np.array_equal(written[0][1], written[1][1])
        labels = torch.from_numpy(written[0][1]).argmax(1)
        same, other = labels[:, None] == labels, ~torch.eye(60, dtype=torch.bool)
        mean = torch.nn.functional.normalize(written[0][0].mean(1), dim=-1)
        cos = mean @ mean.T
        assert cos[same & other].mean() > cos[~same].mean() + 0.08
        assert not list((tmp_path / "a").glob("**/*.tmp"))


    def test_leaves_the_users_files_alone(self, dataset):
        dataset.change(dataset="demo")
        config = load_config(dataset.path)
        (dataset.folder / "query.mat").unlink()
        before = {path: path.read_bytes() for path in dataset.folder.iterdir()}
        data.make_demo(config)
        assert before == {path: path.read_bytes() for path in dataset.folder.iterdir()}


class TestReport:
    def test_says_what_a_dataset_holds(self, dataset, capsys):
        assert data.main([str(dataset.path)]) == 0
        out = capsys.readouterr().out
        for part in (
            f"({N_TRAIN}, {N_FRAMES}, {WIDTH}) float32",
            "contiguous, read in place",
            "all-zero frames: 0 of 120",
            "1 to 1 classes a video",
            "26 to 26 videos a class",
        ):
            assert part in out

    def test_a_broken_one_is_refused(self, dataset, capsys):
        features = dataset.features["test"].copy()
        features[7, 2, 0] = np.inf
        write_features(dataset.folder / "test.h5", features)
        assert data.main([str(dataset.path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "test.h5: video 7, frame 2: not finite" in error
        assert error.count("\n") == 1

    def test_blocks_are_checked(self, dataset, capsys):
        dataset.change(run={"learning_rate": 1})
        assert data.main([str(dataset.path)]) == 2
        assert "unknown key 'learning_rate'" in capsys.readouterr().err
