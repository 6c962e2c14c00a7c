"""The bidirectional transformer of BTH, its losses, and the map from published checkpoints.

Axes: B videos (or 2B, both videos of a pair in one batch), L frames, D feature width, H hidden width, b bits.
A video's latent is the mean of its hidden frames.

Where to find the paper's parts: frame map (``BTH.embed``), the transformer block (``BTH.attention`` and
``BTH.feed_forward``), binary layer (``BTH.hash_layer``), reconstruction (``BTH.restore``).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formats.files import BadInput
from formats.processor import Linear, product
from formats.weights import build_network, read_published
from layers import position_encoding
from metrics import binarize, sign

DROPOUT = 0.1


class Output(NamedTuple):
    """What the network makes of a batch of videos, frame by frame."""

    codes: Tensor  # (B, L, b) in {-1, +1}, straight-through
    reconstruction: Tensor  # (B, L, D)
    hidden: Tensor  # (B, L, H)


class Masked(NamedTuple):
    """What training needs of a batch of disturbed videos."""

    codes: Tensor  # (B, L, b) in {-1, +1}, straight-through
    hidden: Tensor  # (B, L, H)
    loss: Tensor  # the mask loss, a scalar


class Dropout(NamedTuple):
    """How ``drop`` drops entries of a batch, or of a part of one: it is drawn for the whole batch."""

    probability: float = 0.0
    rows: slice = slice(None)  # where the part stands in the batch
    n_videos: int | None = None  # of the whole batch; None: it is no part


class Norm(nn.Module):
    """``weight (x - mean) / (std + 1e-6) + bias`` over the last axis.

    std is the unbiased one (n - 1) and eps is added to it, not to the variance: not PyTorch's LayerNorm.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``x``."""
        centered = x - x.mean(-1, keepdim=True)
        # A vector norm, because std takes forty times as long.
        std = torch.linalg.vector_norm(centered, dim=-1, keepdim=True) / math.sqrt(x.shape[-1] - 1)
        return torch.addcmul(self.bias, self.weight, centered / (std + 1e-6))


class Attention(nn.Module):
    """One head as wide as the model: ``W_o (drop(softmax(q k^T / sqrt(H))) v) + b_o``."""

    def __init__(self, width: int):
        super().__init__()
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.output = Linear(width, width)

    def forward(self, x: Tensor, dropout: Dropout) -> Tensor:
        """Let every frame of ``x`` (B, L, H) look at all frames of its video."""
        layers = self.query, self.key, self.value
        weight, bias = (torch.cat([getattr(layer, leaf) for layer in layers]) for leaf in ("weight", "bias"))
        q, k, v = product(x, weight, bias).chunk(3, dim=-1)  # (B, L, H) each, by one wide product
        weights = (q @ k.mT / math.sqrt(x.shape[-1])).softmax(dim=-1)  # (B, L, L)
        return self.output(drop(weights, dropout) @ v)


class FeedForward(nn.Module):
    """``W_2 drop(gelu(W_1 x + b_1)) + b_2``, four times as wide inside, gelu in its tanh form."""

    def __init__(self, width: int):
        super().__init__()
        self.expand = Linear(width, 4 * width)
        self.contract = Linear(4 * width, width)

    def forward(self, x: Tensor, dropout: Dropout) -> Tensor:
        """Transform every frame of ``x`` (B, L, H) by itself."""
        x = F.gelu(self.expand(x), approximate="tanh")  # (B, L, 4H)
        return self.contract(drop(x, dropout))


class BTH(nn.Module):
    """Frames of a video -> a hash code per frame, and the frames again from their codes alone.

    Dropout follows ``train()`` and ``eval()`` in ``forward``; ``hash`` and ``latent`` never drop anything.

    Args:
        input_size: width D of a frame feature.
        hidden_size: width H of the transformer, even.
        hashcode_size: b, bits of a code.

    Raises:
        BadInput: a size that is not positive, or an odd hidden_size.
    """

    def __init__(self, input_size: int, hidden_size: int = 256, hashcode_size: int = 64):
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "hashcode_size": hashcode_size}
        for name, size in sizes.items():
            if size < 1:
                raise BadInput(f"BTH: {name}: expected at least 1, found {size}")
        if hidden_size % 2:
            raise BadInput(f"BTH: hidden_size: expected an even number, found {hidden_size}")
        self.sizes = sizes  # by the names of their settings
        self.bfloat16 = False  # matrix products in bfloat16; everything else stays in float32
        self.embed = Linear(input_size, hidden_size)
        self.attention = Attention(hidden_size)
        self.feed_forward = FeedForward(hidden_size)
        self.attention_norm = Norm(hidden_size)
        self.feed_forward_norm = Norm(hidden_size)
        self.hash_layer = Linear(hidden_size, hashcode_size)
        self.restore = Linear(hashcode_size, input_size)

    def forward(self, frames: Tensor) -> Output:
        """Encode, hash and restore every frame.

        Args:
            frames: frame features, disturbed ones in training, (B, L, D).

        Returns:
            Codes (B, L, b), reconstruction (B, L, D) and hidden frames (B, L, H).
        """
        hidden = self._encode(frames, Dropout(DROPOUT if self.training else 0.0))  # (B, L, H)
        codes = self._frame_codes(hidden)  # (B, L, b)
        with self._autocast(frames):
            reconstruction = self.restore(codes)
        return Output(codes, reconstruction.to(codes.dtype), hidden)

    def masked(
        self,
        frames: Tensor,
        places: Tensor,
        replacement: Tensor,
        rows: slice = slice(None),
        n_videos: int | None = None,
    ) -> Masked:
        """What training needs of ``forward`` on disturbed videos, without a disturbed or a restored frame.

        Both ends are linear. A disturbed frame's embedding is put in the place of the clean one's. And with
        c~ = [c, 1] and W~ = [W, bias] of ``restore``, ``|W~ c~ - x|^2 = c~ (W~'W~ c~ - 2 W~'x) + x^2``: the
        mask loss needs of the clean frames x only ``W~'x``, which comes from the same product as ``W_f x``.

        Args:
            frames: clean frame features, (B, L, D).
            places: of the disturbed frames among the B L, (Z + R,): first those that become zeros.
            replacement: what the last R of them become, (R, D).
            rows: where a part of a batch stands in it, for a dropout that does not depend on how a batch is
                cut; of pairs, where among the first videos, and their partners likewise.
            n_videos: of the whole batch, or pairs; None: these are all.

        Returns:
            Codes (B, L, b), hidden frames (B, L, H), and ``mask_loss`` against the clean frames.
        """
        x = frames.flatten(0, 1)  # (B L, D)
        restore = torch.cat([self.restore.weight.T, self.restore.bias[None]])  # W~', (b + 1, D)
        with self._autocast(frames):
            both = product(x, torch.cat([self.embed.weight, restore]))
            embedded, target = both.split([len(self.embed.weight), len(restore)], dim=-1)
            others = F.linear(replacement, self.embed.weight)  # (R, H)
        others = torch.cat([others.new_zeros(len(places) - len(others), others.shape[1]), others])
        embedded = embedded.index_copy(0, places, others).view(*frames.shape[:2], -1)  # (B, L, H)
        hidden = self._transform(embedded, Dropout(DROPOUT if self.training else 0.0, rows, n_videos))
        codes = self._frame_codes(hidden)
        c = F.pad(codes.flatten(0, 1), (0, 1), value=1.0)  # c~, (B L, b + 1)
        with torch.autocast(frames.device.type, enabled=False):
            terms = c * torch.addmm(target.to(c.dtype), c, restore @ restore.T, beta=-2)
        squares = torch.linalg.vector_norm(x, dim=-1).square()
        # Added frame by frame: sums over the batch would cancel, and with them the digits of the loss.
        return Masked(codes, hidden, (terms.sum(-1) + squares).sum() / frames.numel())

    @torch.no_grad()
    def hash(self, frames: Tensor) -> Tensor:
        """Video code: the sign of the mean frame code, without dropout.

        Args:
            frames: clean frame features, (B, L, D).

        Returns:
            Codes in {-1, 0, +1} (zeros are ties, possible when L is even), (B, b).
        """
        return sign(self._frame_codes(self._encode(frames, Dropout())).mean(1))  # (B, b)

    @torch.no_grad()
    def latent(self, frames: Tensor) -> Tensor:
        """Video latent: the mean hidden frame, without dropout.

        Args:
            frames: clean frame features, (B, L, D).

        Returns:
            Latent features, (B, H).
        """
        return self._encode(frames, Dropout()).mean(1)  # (B, H)

    def _encode(self, frames: Tensor, dropout: Dropout) -> Tensor:
        with self._autocast(frames):
            embedded = product(frames, self.embed.weight)  # (B, L, H), without the bias
        return self._transform(embedded, dropout)

    def _transform(self, embedded: Tensor, dropout: Dropout) -> Tensor:
        position = position_encoding(*embedded.shape[1:], embedded.device)  # (L, H)
        with self._autocast(embedded):
            e = drop(embedded + (position + self.embed.bias), dropout)  # (B, L, H)
            e = e + drop(self.attention(self.attention_norm(e), dropout), dropout)
            e = e + drop(self.feed_forward(self.feed_forward_norm(e), dropout), dropout)
        return drop(e, dropout)

    def _frame_codes(self, hidden: Tensor) -> Tensor:
        with self._autocast(hidden):
            v = self.hash_layer(hidden)
        return binarize(v.to(hidden.dtype))  # (B, L, b); in float32 the mean over frames is exact

    def _autocast(self, x: Tensor) -> torch.autocast:
        """The precision of the matrix products from here on."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16)


def drop(x: Tensor, dropout: Dropout) -> Tensor:
    """Zero each entry with probability ``p``, scale the others by 1 / (1 - p).

    On a CPU the probability is rounded to 16 bits, four of which come from one draw: a fifth of the time that
    ``F.dropout`` takes.

    Args:
        x: videos, or first videos of pairs and then their partners, (B, ...) or (2B, ...).
        dropout: p, and which rows of a batch these are.
    """
    p, rows, n_videos = dropout
    if not p:
        return x
    n_rows = len(range(*rows.indices(n_videos))) if n_videos else len(x)
    whole = (len(x) // n_rows, n_videos or n_rows, *x.shape[1:])  # (1 or 2, B of the whole batch, ...)
    if x.device.type != "cpu" and whole[1] == n_rows:
        return F.dropout(x, p)
    if x.device.type != "cpu":
        keep = F.dropout(x.new_ones(whole), p)[:, rows]
    else:
        n_draws = math.prod(whole)
        bits = torch.empty(-(-n_draws // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        bits = bits[:n_draws].view(whole)[:, rows].reshape(x.shape)  # uniform in [-2^15, 2^15)
        keep = torch.ge(bits, round(p * 2**16) - 2**15, out=torch.empty_like(x)).div_(1 - p)
    return x * keep.reshape(x.shape)


def mask_loss(reconstruction: Tensor, frames: Tensor) -> Tensor:
    """Squared error of the restored frames: ``sum (frame - clean)^2 / (videos L D)``.

    That is ``/ (2 L D B)`` with both videos of B pairs in the batch, ``/ (L D B)`` with B single videos.

    Args:
        reconstruction: restored frames, (B or 2B, L, D).
        frames: the clean frames, same shape.

    Returns:
        Scalar.
    """
    assert reconstruction.shape == frames.shape, (reconstruction.shape, frames.shape)
    return F.mse_loss(reconstruction, frames)


def neighborhood_loss(codes1: Tensor, codes2: Tensor, target: Tensor) -> Tensor:
    """``mean over pairs of (target - hbar_1 . hbar_2 / b)^2``, hbar the mean frame code of a video.

    Args:
        codes1: frame codes of the first videos, (B, L, b).
        codes2: frame codes of their partners, (B, L, b).
        target: +1 for similar pairs, -1 for dissimilar ones, (B,).

    Returns:
        Scalar.
    """
    assert codes1.shape == codes2.shape, (codes1.shape, codes2.shape)
    assert target.shape == codes1.shape[:1], target.shape
    similarity = (codes1.mean(1) * codes2.mean(1)).mean(-1)  # (B,)
    return (target - similarity).square().mean()


def cluster_loss(hidden: Tensor, anchors: Tensor) -> Tensor:
    """``sum (mean_l hidden - anchor)^2 / (H B)``: draw videos to the anchors of their pseudo labels.

    For the B first videos of the pairs, or for their B partners; the two losses are added.

    Args:
        hidden: hidden frames, (B, L, H).
        anchors: the nearest anchor of each video, (B, H).

    Returns:
        Scalar.
    """
    latent = hidden.mean(1)  # (B, H)
    assert latent.shape == anchors.shape, (latent.shape, anchors.shape)
    return F.mse_loss(latent, anchors)


# Published names and ours; this is the only place that knows both.
_BLOCK = "bert.transformer_blocks.0"
_LAYERS = {
    "bert.embedding.frame_map": "embed",
    f"{_BLOCK}.attention.linear_layers.0": "attention.query",
    f"{_BLOCK}.attention.linear_layers.1": "attention.key",
    f"{_BLOCK}.attention.linear_layers.2": "attention.value",
    f"{_BLOCK}.attention.output_linear": "attention.output",
    f"{_BLOCK}.feed_forward.w_1": "feed_forward.expand",
    f"{_BLOCK}.feed_forward.w_2": "feed_forward.contract",
    "binary": "hash_layer",
    "restore": "restore",
}
PUBLISHED_NAMES = {
    **{f"{layer}.{leaf}": f"{ours}.{leaf}" for layer, ours in _LAYERS.items() for leaf in ("weight", "bias")},
    f"{_BLOCK}.input_sublayer.norm.a_2": "attention_norm.weight",
    f"{_BLOCK}.input_sublayer.norm.b_2": "attention_norm.bias",
    f"{_BLOCK}.output_sublayer.norm.a_2": "feed_forward_norm.weight",
    f"{_BLOCK}.output_sublayer.norm.b_2": "feed_forward_norm.bias",
}
_IGNORED = ("bert.embedding.token.weight", "bert.embedding.segment.weight", "bert.embedding.position.pe")


def load_published(source: str | Path | Mapping, name: str = "state dict") -> BTH:
    """Build the network of a published checkpoint, every size read off its weights.

    The two tables the published network never used and the position table are ignored.

    Args:
        source: path of a ``.pth`` file that holds a bare state dict, or the state dict.
        name: what to call a source that is not a path in an error.

    Raises:
        BadInput: the file cannot be read, is a checkpoint of ours, or its names or weights are not those of a
            BTH network.
    """
    state, name = read_published(source, name)
    state = {key: value for key, value in state.items() if key not in _IGNORED}
    return build_network(_sized, state, PUBLISHED_NAMES, name)


def from_state(state: Mapping[str, Tensor], name: str) -> BTH:
    """Build the network of a state dict under our names, every size read off the weights.

    Args:
        state: weights by name.
        name: what to call their source in an error.

    Raises:
        BadInput: its names or weights are not those of a BTH network.
    """
    return build_network(_sized, state, {ours: ours for ours in PUBLISHED_NAMES.values()}, name)


def _sized(weights: Mapping[str, Tensor]) -> BTH:
    """An empty network of the sizes that the weights have."""
    hidden_size, input_size = weights["embed.weight"].shape
    return BTH(input_size, hidden_size, len(weights["hash_layer.weight"]))
