"""The whole of WSCH: pretrain, train and test in turn."""

import pretrain
import test
import train
from engine.evaluation import check_splits
from engine.runs import Run
from pretrain import WSCHSettings

STAGES = ("pretrain", "train", "test")


def train_model(settings: WSCHSettings, first: Run, second: Run, third: Run) -> dict[int, float]:
    """Pre-train, train, and print the table of both and of an untrained network.

    Returns:
        mAP@K of the trained network by K.

    Raises:
        BadInput: any of the files cannot be used; known before the first epoch where it can be.
    """
    train.check_clusters(settings)
    check_splits(settings)
    pretrained = pretrain.train_model(settings, first)
    trained = train.train_model(settings, second, pretrained)
    return test.train_model(
        settings, third, {"trained": trained, "pre-trained": pretrained, "untrained": None}
    )
