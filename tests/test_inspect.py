"""The report on a dataset."""

import numpy as np
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

    def test_blocks_are_checked(self, dataset, capsys):
        dataset.change(run={"learning_rate": 1, "seed": 1})  # a seed is a run's, not a dataset's
        assert inspect.main([str(dataset.path)]) == 2
        error = capsys.readouterr().err
        assert "unknown key 'learning_rate'" in error
        assert "unknown key 'seed'" in error
