"""The whole of BTH: mask-only training, preparation, full training and test in turn."""

from bth import prepare, pretrain, test, train
from bth.settings import BTHSettings
from engine.evaluation import check_splits
from engine.runs import Run

STAGES = ("bth.pretrain", "bth.prepare", "bth.train", "bth.test")


def train_model(settings: BTHSettings, first: Run, second: Run, third: Run, fourth: Run) -> dict[int, float]:
    """Run the four stages and print the table of both trained networks and of an untrained one.

    Returns:
        mAP@K of the fully trained network by K.

    Raises:
        BadInput: any of the files cannot be used; known before the first epoch where it can be.
    """
    prepare.check_inputs(settings)
    check_splits(settings)
    mask_only = pretrain.train_model(settings, first)
    prepare.train_model(settings, second, mask_only)
    trained = train.train_model(settings, third, mask_only)
    return test.train_model(settings, fourth, {"trained": trained, "mask only": mask_only, "untrained": None})
