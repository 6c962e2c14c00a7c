"""ConMH's settings with their published values, and what the engine needs to know of it (``SYSTEM``)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from conmh import model
from conmh.model import ConMH
from data import generator
from engine.settings import SystemSettings, cuts, not_negative, positive, ratio, setting, size
from engine.systems import System
from engine.training import SMALL, contrastive_problems, mask_problems


@dataclass(frozen=True)
class Own:
    """Settings of ConMH alone (its spec: sections 1 and 2)."""

    p: float = setting(0.75, "mask ratio", ratio, "0 <= p < 1", also="mask_ratio")
    a: float = setting(1.0, "weight of the contrastive loss", not_negative, "0 or more")
    temperature: float = setting(0.5, "temperature of the contrastive loss", positive, "above 0")
    tau_plus: float = setting(0.1, "prior probability of a false negative", ratio, "0 <= tau_plus < 1")
    n_blocks: int = setting(
        12, "blocks of the encoder; published: small 12, base 12, large 24, mini 1", positive, "1 or more",
        also="depth layers",
    )  # fmt: skip
    n_heads: int = setting(
        6, "heads of its attention; published: small 6, base 12, large 16, mini 1", positive, "1 or more",
        also="heads",
    )  # fmt: skip
    decoder_blocks: int = setting(2, "blocks of the decoder", positive, "1 or more")
    decoder_heads: int = setting(3, "heads of its attention", positive, "1 or more")
    lr_decay: float = setting(
        0.9, "factor on lr every lr_decay_epochs", lambda v: 0 < v <= 1, "0 < lr_decay <= 1"
    )
    lr_decay_epochs: int = setting(20, "epochs between two decays of lr", positive, "1 or more")
    lr_min: float = setting(1e-5, "lr never decays below it", positive, "above 0")


@dataclass(frozen=True, kw_only=True)
class ConMHSettings(SystemSettings):
    """The settings of ConMH and their published values (its spec: sections 1 to 3)."""

    block: ClassVar[str] = "conmh"
    fresh_stages: ClassVar[tuple[str, ...]] = ("conmh.pipeline", "conmh.train")

    stage: str = setting("conmh.pipeline", "what to run")
    max_iter: int = setting(800, "epochs of the training", not_negative, "0 or more", also="epochs n_epochs")
    lr: float = setting(1e-4, "Adam's learning rate, which decays in steps", positive, "above 0")
    batch_size: int = setting(512, "videos in a batch", positive, "1 or more")
    hidden_size: int = setting(256, "width H of the encoder", size, "even")
    decoder_size: int = setting(192, "width H' of the decoder", size, "even")
    ks: tuple[int, ...] = setting(
        (5, 10, 20, 40, 60, 80, 100), "cuts K of mAP@K", cuts, "whole numbers from 1 on, each once"
    )
    conmh: Own = field(default_factory=Own)

    @classmethod
    def sized_for(cls, n_videos: int) -> dict[str, Any]:
        """Of a small set, what GTSRB's 438 videos were trained with."""
        return {"max_iter": 100, "lr": 3e-4, "batch_size": 32} if n_videos < SMALL else {}

    def problems(self) -> list[str]:
        """What is wrong with settings that are each right by themselves."""
        problems, own = super().problems(), self.conmh
        for name, heads in (("hidden_size", "n_heads"), ("decoder_size", "decoder_heads")):
            width, n_heads = getattr(self, name), getattr(own, heads)
            if width % 2 or width < n_heads:
                least = f"an even number and at least 'conmh.{heads}' = {n_heads}"
                problems.append(f"'{name}' must be {least} (a width of the network), found {width}")
        if self.stage != "conmh.test":
            problems += mask_problems(self.config.max_frames, "conmh.p", own.p)
            problems += contrastive_problems(self.batch_size, "conmh.a", own.a)
        return problems

    def unsaid(self) -> dict[str, Any]:
        """A published checkpoint does not tell how many heads its weights are of."""
        return {"n_heads": self.conmh.n_heads, "decoder_heads": self.conmh.decoder_heads}


def fresh_network(settings: ConMHSettings, input_size: int) -> ConMH:
    """A network with the initial weights of the seed."""
    torch.manual_seed(generator(settings.seed, "conmh.train").integers(2**62))
    own = settings.conmh
    net = ConMH(input_size, settings.hidden_size, settings.decoder_size, settings.hashcode_size, own.n_blocks,
                own.n_heads, own.decoder_blocks, own.decoder_heads)  # fmt: skip
    net.bfloat16 = settings.precision == "bfloat16"
    return net


SYSTEM = System(
    name="ConMH",
    settings=ConMHSettings,
    stages=("conmh.pipeline", "conmh.train", "conmh.test"),
    tested=("conmh.train",),
    network=model,
    fresh_network=fresh_network,
)
