"""What the networks of several systems share: norms, attention, views, the hash unit, the contrastive loss.

Axes: B videos (view 1 of a batch, then view 2: 2B), L frames, V visible frames, M = L - V hidden frames,
H hidden width, b bits. A mask is boolean and True means hidden.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formats.processor import Linear
from metrics import binarize


def full(x: Tensor) -> Tensor:
    """``x`` in float32 at least: norms, softmax, the state space, decisions never run in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class LayerNorm(nn.LayerNorm):
    """Layer norm with the products around it in any precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (..., width)."""
        return super().forward(full(x))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention, each (B, heads, tokens, width of a head)."""
    if key.shape[2] > 1:
        return F.scaled_dot_product_attention(query, key, value)
    # A token alone is attended to whole. The fused kernel's gradient of query and key is rounding noise then,
    # which Adam would blow up; here it is zero.
    return value + 0 * query * key


def position_encoding(length: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """The sinusoidal table of the Transformer, for any length.

    ``PE(l, 2i) = sin(l / 10000^(2i / H))``, ``PE(l, 2i + 1) = cos(l / 10000^(2i / H))``.

    Args:
        length: L, number of positions.
        width: H, even.
        device: where the table is made.

    Returns:
        float32, (L, H).
    """
    frequency = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))  # (H/2,)
    angle = torch.arange(length, device=device)[:, None] * frequency  # (L, H/2)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)  # (L, H)


def beside(frames: Tensor, mask: Tensor) -> Tensor:
    """A mask on the frames' device; copied in the background only from pinned memory to CUDA."""
    return mask.to(frames.device, non_blocking=frames.is_cuda and mask.is_pinned())


class Places(NamedTuple):
    """Which frames of its video every view has, in temporal order."""

    visible: Tensor  # (2B, V)
    hidden: Tensor  # (2B, M)

    @classmethod
    def of(cls, frames: Tensor, mask: Tensor) -> "Places":
        """Those that a mask (B or 2B, L), as many in every row, leaves and takes of frames (B, L, D)."""
        n_hidden = mask.sum(1)
        assert (n_hidden == n_hidden[0]).all()
        order = beside(frames, mask).byte().argsort(dim=1, stable=True)  # (2B, L)
        return cls(*order.split([mask.shape[1] - int(n_hidden[0]), int(n_hidden[0])], dim=1))


def take_frames(frames: Tensor, places: Tensor) -> Tensor:
    """Gather the frames of every view: (B, L, D), places (B or 2B, V) -> (B or 2B, V, D)."""
    video = torch.arange(len(places), device=frames.device) % len(frames)
    rows = video[:, None] * frames.shape[1] + places
    return frames.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, places.shape)


def visible_frames(frames: Tensor, mask: Tensor) -> Tensor:
    """Gather what a mask leaves: frames (B, L, D), mask (B or 2B, L) -> (B or 2B, V, D)."""
    return take_frames(frames, Places.of(frames, mask).visible)


class HashLayer(nn.Module):
    """Tokens to per-frame codes: ``c = binarize(LayerNorm(W e + bias))``, straight-through."""

    def __init__(self, hidden_size: int, hashcode_size: int):
        super().__init__()
        self.linear = Linear(hidden_size, hashcode_size)
        self.norm = LayerNorm(hashcode_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, V, H) to codes (B, V, b) in {-1, +1}, float32."""
        return binarize(self.norm(self.linear(tokens)))


def video_embedding(codes: Tensor) -> Tensor:
    """Unit-length mean of frame codes (B, V, b) -> (B, b): ``mean(c) / max(||mean(c)||, 1e-12)``."""
    return F.normalize(codes.mean(1), dim=-1)


def contrastive_loss(embedding1: Tensor, embedding2: Tensor, temperature: float, tau_plus: float) -> Tensor:
    """Debiased contrastive loss of two views (Chuang et al., 2020).

    With n = 2B - 2: ``Ng = max((neg - tau n pos) / (1 - tau), n exp(-1 / T))`` and the mean over all 2B
    anchors of ``-log(pos / (pos + Ng))``, the gradient flowing through pos and Ng.

    Args:
        embedding1: unit-length embeddings of view 1, (B, b).
        embedding2: the same videos in view 2, (B, b).
        temperature: T, above 0.
        tau_plus: prior probability that a negative is a false one, in [0, 1).

    Returns:
        A scalar.
    """
    embedding = torch.cat([embedding1, embedding2])  # (2B, b)
    n_videos = len(embedding1)
    similarity = (embedding @ embedding.T / temperature).exp()  # (2B, 2B)
    anchor = torch.arange(2 * n_videos, device=embedding.device)
    partner = (anchor + n_videos) % (2 * n_videos)
    pos = similarity[anchor, partner]
    excluded = (anchor[:, None] % n_videos) == (anchor % n_videos)  # the anchor itself and its partner
    neg = similarity.masked_fill(excluded, 0).sum(1)
    n = 2 * n_videos - 2
    ng = ((neg - tau_plus * n * pos) / (1 - tau_plus)).clamp_min(n * math.exp(-1 / temperature))
    return -(pos / (pos + ng)).log().mean()
