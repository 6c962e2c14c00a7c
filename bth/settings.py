"""BTH's settings with their published values, and what the engine needs to know of it (``SYSTEM``)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from bth import model
from bth.model import BTH
from data import generator
from engine.settings import SystemSettings, cuts, not_negative, positive, setting, size
from engine.systems import System
from engine.training import SMALL, n_centers, step_decay


@dataclass(frozen=True)
class Own:
    """Settings of BTH alone (its spec: sections 2 and 3)."""

    n_anchors: int = setting(2000, "anchors requested from k-means", lambda v: v >= 5, "5 or more")
    mask_weight: float = setting(0.92, "weight of the mask loss in bth.train", not_negative, "0 or more")
    neighborhood_weight: float = setting(0.08, "weight of the neighborhood loss", not_negative, "0 or more")
    cluster_weight: float = setting(0.8, "weight of the cluster loss", not_negative, "0 or more")
    lr_decay: float = setting(
        0.9, "factor on lr every lr_decay_epochs", lambda v: 0 < v <= 1, "0 < lr_decay <= 1"
    )
    lr_decay_epochs: int = setting(20, "epochs between two decays of lr", positive, "1 or more")
    lr_min: float = setting(1e-4, "lr never decays below it", positive, "above 0")
    latent_feats: str | None = setting(
        None, "latent features, HDF5; None: latent_feats.h5 in result_weight_dir"
    )
    anchors: str | None = setting(None, "anchors, HDF5; None: anchors.h5 in result_weight_dir")
    train_assit: str | None = setting(None, "pseudo labels, HDF5; None: train_assit.h5 in result_weight_dir")
    sim_matrix: str | None = setting(None, "similarity, HDF5; None: sim_matrix.h5 in result_weight_dir")


@dataclass(frozen=True, kw_only=True)
class BTHSettings(SystemSettings):
    """The settings of BTH and their published values (the head of its spec)."""

    block: ClassVar[str] = "bth"
    fresh_stages: ClassVar[tuple[str, ...]] = ("bth.pipeline", "bth.pretrain", "bth.prepare")

    stage: str = setting("bth.pipeline", "what to run")
    max_iter: tuple[int, int] = setting(
        (56, 56), "epochs of mask-only and full training", lambda v: min(v) >= 0,
        "two whole numbers, 0 or more", also="epochs n_epochs",
    )  # fmt: skip
    lr: float = setting(
        3e-4, "Adam's learning rate, which decays in steps", positive, "above 0", also="learning_rate"
    )
    batch_size: int = setting(
        256, "videos in a batch; pairs in bth.train", positive, "1 or more", also="bs batch"
    )
    hidden_size: int = setting(256, "width H of the transformer", size, "even", also="hidden")
    ks: tuple[int, ...] = setting(
        (5, 10, 20, 40, 60, 80, 100), "cuts K of mAP@K", cuts, "whole numbers from 1 on, each once"
    )
    bth: Own = field(default_factory=Own)

    @classmethod
    def sized_for(cls, n_videos: int) -> dict[str, Any]:
        """Of a small set, what GTSRB's 438 videos were tuned to."""
        small = {"max_iter": [50, 50], "batch_size": 16} if n_videos < SMALL else {}
        return small | {"n_anchors": max(5, n_centers(n_videos))}

    def problems(self) -> list[str]:
        """What is wrong with settings that are each right by themselves."""
        problems = super().problems()
        if self.hidden_size % 2:
            problems.append(
                f"'hidden_size' must be a multiple of 2 (the transformer's width, not the feature's "
                f"{self.config.feature_size}), found {self.hidden_size}"
            )
        return problems


def fresh_network(settings: BTHSettings, input_size: int, stage: str = "bth.train") -> BTH:
    """A network with the initial weights of (seed, stage), different ones for the two training stages."""
    torch.manual_seed(generator(settings.seed, stage).integers(2**62))
    net = BTH(input_size, settings.hidden_size, settings.hashcode_size)
    net.bfloat16 = settings.precision == "bfloat16"
    return net


def learning_rate(settings: BTHSettings) -> Callable[[int], float]:
    """The published schedule: decays in steps."""
    return step_decay(settings.lr, settings.bth.lr_decay, settings.bth.lr_decay_epochs, settings.bth.lr_min)


SYSTEM = System(
    name="BTH",
    settings=BTHSettings,
    stages=("bth.pipeline", "bth.pretrain", "bth.prepare", "bth.train", "bth.test"),
    tested=("bth.train", "bth.pretrain"),
    network=model,
    fresh_network=fresh_network,
)
