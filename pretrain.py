"""Stage 1 of WSCH: masked reconstruction of both views (spec: section 7, pretrain).

Here too, for all its stages: WSCH's settings, and what the engine needs to know of it (``SYSTEM``).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import model
from data import generator
from engine.device import environment, open_device
from engine.feed import masked, open_training_set
from engine.loop import Pass, Stage, run_stage
from engine.ranks import Part
from engine.runs import Run
from engine.settings import SystemSettings, cuts, not_negative, positive, ratio, setting, size
from engine.systems import System
from engine.training import SMALL, contrastive_problems, mask_problems, n_centers
from model import WSCH, reconstruction_loss


@dataclass(frozen=True)
class Cfg:
    """Hyper-parameters of WSCH's training (spec: section 7)."""

    a: float = setting(0.02, "weight of the cluster loss", not_negative, "0 or more")
    b: float = setting(1.0, "weight of the contrastive loss", not_negative, "0 or more")
    clus_temperature: float = setting(0.2, "temperature of the cluster loss", positive, "above 0")
    n_clusters: int = setting(800, "centers of the k-means over hash codes", positive, "1 or more")
    temperature: float = setting(0.5, "temperature of the contrastive loss", positive, "above 0")
    tau_plus: float = setting(0.1, "prior probability of a false negative", ratio, "0 <= tau_plus < 1")
    p1: float = setting(0.9, "mask ratio of pre-training and clustering", ratio, "0 <= p1 < 1")
    p2: float = setting(0.6, "mask ratio of the two training passes", ratio, "0 <= p2 < 1")


@dataclass(frozen=True, kw_only=True)
class WSCHSettings(SystemSettings):
    """The settings of WSCH and their published values (spec: section 7)."""

    block: ClassVar[str] = "run"
    fresh_stages: ClassVar[tuple[str, ...]] = ("pipeline", "pretrain")

    stage: str = setting("pipeline", "what to run")
    max_iter: tuple[int, int] = setting(
        (100, 300), "epochs of pretrain and of train", lambda v: min(v) >= 0, "two whole numbers, 0 or more",
        also="epochs n_epochs",
    )  # fmt: skip
    lr: float = setting(1e-4, "Adam's learning rate", positive, "above 0", also="learning_rate")
    batch_size: int = setting(128, "videos in a batch", positive, "1 or more", also="bs batch")
    hidden_size: int = setting(1024, "width H of the encoder", size, "a multiple of 64", also="hidden")
    decoder_size: int = setting(
        1024,
        "width H' of the decoder",
        lambda v: v > 0 and v % 4 == 0,
        "a multiple of 4",
        also="decoder",
    )
    ks: tuple[int, ...] = setting(
        (5, 20, 40, 60, 80, 100), "cuts K of mAP@K", cuts, "whole numbers from 1 on, each once"
    )
    cfg: Cfg = field(default_factory=Cfg)

    @classmethod
    def sized_for(cls, n_videos: int) -> dict[str, Any]:
        """Of a small set, what GTSRB's 438 videos were tuned to."""
        small = {"max_iter": [40, 80], "lr": 5e-4, "batch_size": 128, "hidden_size": 256, "decoder_size": 256}
        return (small if n_videos < SMALL else {}) | {"cfg": {"n_clusters": n_centers(n_videos)}}

    def problems(self) -> list[str]:
        """What is wrong with settings that are each right by themselves."""
        problems = super().problems()
        n_frames = self.config.max_frames
        if self.hidden_size % 64:
            problems.append(
                f"'hidden_size' must be a multiple of 64 (the encoder's width, not the feature's "
                f"{self.config.feature_size}), found {self.hidden_size}"
            )
        if self.stage in ("pipeline", "train"):
            problems += contrastive_problems(self.batch_size, "cfg.b", self.cfg.b)
        for name in {"pretrain": ("p1",), "test": ()}.get(self.stage, ("p1", "p2")):
            problems += mask_problems(n_frames, f"cfg.{name}", getattr(self.cfg, name))
        return problems


def train_model(settings: WSCHSettings, run: Run) -> Path:
    """Pre-train a network from fresh weights.

    Returns:
        The finished checkpoint.

    Raises:
        BadInput: the training set cannot be used, or a loss is not finite.
    """
    if run.is_trained():
        return run.end()
    config, device = settings.config, open_device(settings)
    store = open_training_set(settings, device)
    net = fresh_network(settings, config.feature_size).to(device)

    def loss(_: Part, frames: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"reconstruction": reconstruction_loss(net(frames, mask).reconstruction, frames, mask)}

    passes = [Pass("reconstruction", masked(store, settings.cfg.p1), loss)]
    run.start(store.place, **environment(device), videos=len(store))
    optimizer = torch.optim.Adam(net.parameters(), settings.lr, fused=True)
    run_stage(run, Stage(net, optimizer, store, passes, settings.max_iter[0], lambda _: settings.lr))
    return run.end()


def fresh_network(settings: WSCHSettings, input_size: int) -> WSCH:
    """A network with the initial weights of the seed, the same for every stage."""
    torch.manual_seed(generator(settings.seed, "weights").integers(2**62))
    net = WSCH(input_size, settings.hidden_size, settings.decoder_size, settings.hashcode_size,
               settings.cfg.n_clusters)  # fmt: skip
    net.bfloat16 = settings.precision == "bfloat16"
    return net


SYSTEM = System(
    name="WSCH",
    settings=WSCHSettings,
    stages=("pipeline", "pretrain", "train", "test"),
    tested=("train", "pretrain"),
    network=model,
    fresh_network=fresh_network,
)
