"""The whole of ConMH: training and test in turn."""

from conmh import test, train
from conmh.settings import ConMHSettings
from engine.evaluation import check_splits
from engine.runs import Run

STAGES = ("conmh.train", "conmh.test")


def train_model(settings: ConMHSettings, first: Run, second: Run) -> dict[int, float]:
    """Train, and print the table of the trained and of an untrained network.

    Returns:
        mAP@K of the trained network by K.

    Raises:
        BadInput: any of the files cannot be used; known before the first epoch where it can be.
    """
    check_splits(settings)
    trained = train.train_model(settings, first)
    return test.train_model(settings, second, {"trained": trained, "untrained": None})
