"""The report on a dataset."""

import numpy as np
import scipy.io
from synthetic import N_FRAMES, N_TRAIN, WIDTH, write_features

from tools import inspect


class TestReport:
    def test_says_what_a_dataset_holds(self, dataset, capsys):
        dataset.features["train"][3, -2:] = 0
        write_features(dataset.folder / "train.h5", dataset.features["train"])
        assert inspect.main([str(dataset.path)]) == 0
        out = capsys.readouterr().out
        for part in (
            f"({N_TRAIN}, {N_FRAMES}, {WIDTH}) float32",
            "contiguous, read in place",
            "all-zero frames: 2 of 120",
            "1 to 1 classes a video",
            "26 to 26 videos a class",
        ):
            assert part in out

    def test_a_broken_one_is_refused(self, dataset, capsys):
        features = dataset.features["test"].copy()
        features[7, 2, 0] = np.inf
        write_features(dataset.folder / "test.h5", features)
        assert inspect.main([str(dataset.path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "test.h5: video 7, frame 2: not finite" in error
        assert error.count("\n") == 1

    def test_padding_is_a_warning(self, dataset, capsys):
        features = dataset.features["query"].copy()
        features[2:4, N_FRAMES // 2 :] = 0
        write_features(dataset.folder / "query.h5", features)
        assert inspect.main([str(dataset.path)]) == 0
        out = capsys.readouterr().out
        assert "query.h5: 2 videos end in all-zero frames, which the network sees as frames" in out
        assert out.count("warning:") == 1

    def test_what_a_run_would_refuse(self, dataset, capsys):
        dataset.drop_blocks("bth", "conmh")
        write_features(dataset.folder / "test.h5", dataset.features["test"][:60])
        scipy.io.savemat(dataset.folder / "test.mat", {"labels": dataset.labels["test"][:60]})
        dataset.change(run=dataset.content["run"] | {"cfg": {"n_clusters": 41, "p2": 0.5}})
        assert inspect.main([str(dataset.path)]) == 2
        out, err = capsys.readouterr()
        assert "mAP@100 needs a database of 100 videos, found 60" in err
        assert "'cfg.n_clusters' is 41, more than the 40 codes" in err
        assert "n_anchors" not in err
        assert "no block 'bth': BTH has its published settings, 56 + 56 epochs among them" in out
        assert "no block 'conmh': ConMH has its published settings, 800 epochs among them" in out
        dataset.change(run={}, bth={"n_anchors": 21})
        assert inspect.main([str(dataset.path)]) == 2
        assert "'cfg.n_clusters' is 800" in capsys.readouterr().err

    def test_published_epochs_are_said(self, dataset, capsys):
        del dataset.content["run"]
        dataset.change(bth={"n_anchors": 21})
        assert inspect.main([str(dataset.path)]) == 2
        out, err = capsys.readouterr()
        assert "no block 'run': WSCH has its published settings, 100 + 300 epochs among them" in out
        assert "BTH would refuse it: 'bth.n_anchors' is 21, more than the 20 training videos" in err

    def test_all_that_every_system_would_refuse(self, dataset, capsys):
        anchors = "BTH would refuse it: 'bth.n_anchors' is 21, more than the 20 training videos"
        for settings, wsch in (
            ({"cfg": {"n_clusters": 41, "p2": 0.5}}, "'cfg.n_clusters' is 41, more than the 40"),
            ({"hidden_size": 100, "cfg": {"p2": 0.5}}, "'hidden_size' must be a multiple of 64"),
        ):
            dataset.change(run=settings, bth={"n_anchors": 21})
            assert inspect.main([str(dataset.path)]) == 2
            err = capsys.readouterr().err
            assert f"synthetic.json: WSCH would refuse it: {wsch}" in err
            assert f"; {anchors}\n" in err

    def test_a_published_json_is_for_the_first_system(self, dataset, capsys):
        dataset.drop_blocks()
        dataset.change()
        assert inspect.main([str(dataset.path)]) == 2
        assert "WSCH would refuse it: 'cfg.n_clusters' is 800, more than the 40" in capsys.readouterr().err

    def test_blocks_are_checked(self, dataset, capsys):
        dataset.change(run={"learning_rate": 1, "seed": 1})  # a seed is a run's, not a dataset's
        assert inspect.main([str(dataset.path)]) == 2
        error = capsys.readouterr().err
        assert "unknown key 'learning_rate'" in error
        assert "unknown key 'seed'" in error
