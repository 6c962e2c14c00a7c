"""Training passes at the published sizes, each in two formulations: the package's, and the direct one.

The direct formulation stands in ``bench/direct.py`` (WSCH), ``bench/direct_bth.py`` and
``bench/direct_conmh.py``; both start from the same weights and see the same batch and masks. A step is
forward, losses, backward and Adam: fused here, PyTorch's default there.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import model
from bench import direct, direct_bth, direct_conmh
from bth.model import BTH, cluster_loss, mask_loss, neighborhood_loss
from bth.pairs import draw_disturbance
from bth.settings import Own
from conmh.model import ConMH, reconstruction_loss
from conmh.settings import Own as OwnConMH
from data import draw_views, generator
from layers import video_embedding
from pretrain import Cfg

PUBLISHED = (4096, 1024, 1024, 64, 800)  # D, H, H', bits, n_clusters
BTH_PUBLISHED = (4096, 256, 64)  # D, H, bits
CONMH_PUBLISHED = (4096, 256, 192, 64, 12, 6, 2, 3)  # D, H, H', bits; blocks and heads of encoder, decoder
N_FRAMES, BATCH = 25, 128
PASSES = {"pretrain": "p1", "cluster-guided": "p2", "contrastive": "p2"}
BTH_PASSES = ("bth-mask", "bth-pairs")  # a batch is as many videos, as many pairs
CONMH_PASS = "conmh-views"
CFG, OWN, CONMH = Cfg(), Own(), OwnConMH()


@dataclass
class Ours:
    """A pass of the package on one batch."""

    net: nn.Module
    name: str
    frames: Tensor
    mask: Tensor
    optimizer: torch.optim.Optimizer | None = None

    def loss(self) -> Tensor:
        """The loss of the pass, as the stages have it."""
        out = self.net(self.frames, self.mask)
        loss = model.reconstruction_loss(out.reconstruction, self.frames, self.mask)
        views = out.embedding.chunk(2)
        if self.name == "cluster-guided":
            pull = sum(model.cluster_loss(view, self.net.centers, CFG.clus_temperature) for view in views)
            loss = loss + CFG.a * pull
        if self.name == "contrastive":
            loss = loss + CFG.b * model.contrastive_loss(*views, CFG.temperature, CFG.tau_plus)
        return loss

    def step(self) -> None:
        """One step of Adam."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


class Direct(Ours):
    """The same pass in the direct formulation."""

    def loss(self) -> Tensor:
        """The loss of the pass as the equations are written, a forward for each view."""
        masks = self.mask.chunk(2)
        outs = [self.net(self.frames, mask) for mask in masks]
        loss = sum(
            direct.reconstruction_loss(reconstruction, self.frames, mask)
            for (reconstruction, _), mask in zip(outs, masks, strict=True)
        )
        views = [embedding for _, embedding in outs]
        if self.name == "cluster-guided":
            pull = sum(direct.cluster_loss(view, self.net.centers, CFG.clus_temperature) for view in views)
            loss = loss + CFG.a * pull
        if self.name == "contrastive":
            loss = loss + CFG.b * direct.contrastive_loss(*views, CFG.temperature, CFG.tau_plus)
        return loss


def ours_and_direct(
    name: str, sizes: tuple[int, ...] = PUBLISHED, n_videos: int = BATCH, n_frames: int = N_FRAMES
) -> tuple[Ours, Direct]:
    """A pass in both formulations, with equal weights, on the same random batch."""
    torch.manual_seed(0)
    net, other = model.WSCH(*sizes), direct.Direct(*sizes)
    net.centers.copy_(torch.randn_like(net.centers).sign())
    other.load_state_dict(net.state_dict())
    frames = torch.randn(n_videos, n_frames, sizes[0])
    ratio = getattr(CFG, PASSES[name])
    mask = draw_views(generator(0, name), n_videos, n_frames, ratio).masks.flatten(0, 1)
    adam = torch.optim.Adam(net.parameters(), 1e-4, fused=True)
    plain = torch.optim.Adam(other.parameters(), 1e-4)
    return Ours(net, name, frames, mask, adam), Direct(other, name, frames, mask, plain)


@dataclass
class OursBTH(Ours):
    """A pass of BTH on one batch; its ``mask`` is the plan of the disturbance."""

    replacement: Tensor | None = None  # (R, D)
    target: Tensor | None = None  # (B,)
    nearest: Tensor | None = None  # (2, B, H)

    def loss(self) -> Tensor:
        """The loss of the pass, as the stages have it."""
        places = np.concatenate([np.flatnonzero(self.mask.zero), np.flatnonzero(self.mask.replace)])
        frames = self.frames.flatten(0, -3)
        out = self.net.masked(frames, torch.from_numpy(places), self.replacement)
        return self.with_pairs(out.loss, out.codes, out.hidden)

    def loss_of_restored_frames(self) -> Tensor:
        """The same by ``forward`` and ``mask_loss``, on a disturbed copy of the batch."""
        disturbed = direct_bth.disturb(self.frames, self.mask, self.replacement)
        out = self.net(disturbed.flatten(0, -3))
        loss = mask_loss(out.reconstruction, self.frames.flatten(0, -3))
        return self.with_pairs(loss, out.codes, out.hidden)

    def with_pairs(self, loss: Tensor, codes: Tensor, hidden: Tensor) -> Tensor:
        """The weighted sum of the losses of bth.train."""
        if self.name == "bth-mask":
            return loss
        pull = sum(cluster_loss(*each) for each in zip(hidden.chunk(2), self.nearest, strict=True))
        near = neighborhood_loss(*codes.chunk(2), self.target)
        return OWN.mask_weight * loss + OWN.neighborhood_weight * near + OWN.cluster_weight * pull


class DirectBTH(OursBTH):
    """The same pass in the direct formulation."""

    def loss(self) -> Tensor:
        """The loss of the pass as published, a forward for each video of a pair."""
        disturbed = direct_bth.disturb(self.frames, self.mask, self.replacement)
        if self.name == "bth-mask":
            return F.mse_loss(self.net(disturbed)[1], self.frames)
        return direct_bth.pair_loss(self.net, self.frames, disturbed, self.target, self.nearest)


def bth_ours_and_direct(
    name: str, sizes: tuple[int, ...] = BTH_PUBLISHED, n_videos: int = BATCH, n_frames: int = N_FRAMES
) -> tuple[OursBTH, DirectBTH]:
    """A pass of BTH in both formulations, with equal weights, on the same random batch."""
    torch.manual_seed(0)
    net, other = BTH(*sizes), direct_bth.DirectBTH(*sizes)
    other.load_state_dict(net.state_dict())
    shape = (n_videos, n_frames) if name == "bth-mask" else (2, n_videos, n_frames)
    frames = torch.randn(*shape, sizes[0])
    plan = draw_disturbance(shape, n_videos, generator(0, name))
    others = torch.randn(int(plan.replace.sum()), sizes[0])
    target, nearest = torch.randn(n_videos).sign(), torch.randn(2, n_videos, sizes[1])
    adam = torch.optim.Adam(net.parameters(), 3e-4, fused=True)
    plain = torch.optim.Adam(other.parameters(), 3e-4)
    return (
        OursBTH(net, name, frames, plan, adam, others, target, nearest),
        DirectBTH(other, name, frames, plan, plain, others, target, nearest),
    )


class OursConMH(Ours):
    """ConMH's pass on one batch."""

    def loss(self) -> Tensor:
        """The loss of the pass, as the stage has it."""
        return self.with_contrast(*self.net.masked(self.frames, self.mask))

    def loss_of_hidden_frames(self) -> Tensor:
        """The same by ``forward`` and ``reconstruction_loss``."""
        out = self.net(self.frames, self.mask)
        loss = reconstruction_loss(out.reconstruction, self.frames, self.mask)
        return self.with_contrast(loss, video_embedding(out.codes))

    def with_contrast(self, loss: Tensor, embedding: Tensor) -> Tensor:
        """The weighted sum of the losses of conmh.train."""
        views = embedding.chunk(2)
        return loss + CONMH.a * model.contrastive_loss(*views, CONMH.temperature, CONMH.tau_plus)


class DirectConMH(Ours):
    """The same pass in the direct formulation."""

    def loss(self) -> Tensor:
        """The loss of the pass as published, a forward for each view."""
        return direct_conmh.views_loss(self.net, self.frames, self.mask)


def conmh_ours_and_direct(
    name: str = CONMH_PASS,
    sizes: tuple[int, ...] = CONMH_PUBLISHED,
    n_videos: int = BATCH,
    n_frames: int = N_FRAMES,
) -> tuple[OursConMH, DirectConMH]:
    """ConMH's pass in both formulations, with equal weights, on the same random batch."""
    torch.manual_seed(0)
    net, other = ConMH(*sizes), direct_conmh.DirectConMH(*sizes)
    other.load_state_dict(net.state_dict())
    frames = torch.randn(n_videos, n_frames, sizes[0])
    mask = draw_views(generator(0, name), n_videos, n_frames, CONMH.p).masks.flatten(0, 1)
    adam = torch.optim.Adam(net.parameters(), 1e-4, fused=True)
    plain = torch.optim.Adam(other.parameters(), 1e-4)
    return OursConMH(net, name, frames, mask, adam), DirectConMH(other, name, frames, mask, plain)


def both(name: str, n_videos: int) -> tuple[Ours, Ours]:
    """A pass of any system, here and direct, at the published sizes."""
    of = {CONMH_PASS: conmh_ours_and_direct, **dict.fromkeys(BTH_PASSES, bth_ours_and_direct)}
    return of.get(name, ours_and_direct)(name, n_videos=n_videos)
