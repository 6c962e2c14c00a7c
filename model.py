"""WSCH: the wide-shallow autoencoder for self-supervised video hashing, its losses, published weights.

Reading order: ``Encoder`` (visible frames -> tokens), ``HashLayer`` (tokens -> bits, in ``layers.py``),
``Decoder`` (bits -> one reconstruction per video), ``WSCH`` (the whole), two losses (the third, which other
systems share, in ``layers.py``), ``load_published``.

Axes: B videos (view 1 of a batch, then view 2: 2B), L frames, V visible frames, M = L - V hidden frames,
D feature width, H hidden width, b bits. A mask is boolean and True means hidden.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formats.processor import Linear, product
from formats.weights import WRAPPERS, build_network, read_published
from layers import (
    HashLayer,
    LayerNorm,
    attend,
    beside,
    full,
    video_embedding,
    visible_frames,
)
from layers import contrastive_loss as contrastive_loss  # the third of its losses
from metrics import sign

N_HEADS = 4  # attention heads, encoder and decoder
STATE_SIZE = 64  # rows of the SSD's state
HEAD_WIDTH = 128  # channels of one SSD head
KERNEL_SIZE = 4  # taps of the causal convolution


class Output(NamedTuple):
    """What ``WSCH.forward`` returns."""

    reconstruction: Tensor  # (B, D), the one vector that stands for every hidden frame of a video
    embedding: Tensor  # (B, b), unit length: the mean of the visible frames' codes


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a weight and no bias (paper's backbone: Mamba-2)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (..., H)."""
        return F.rms_norm(full(x), self.weight.shape, self.weight, 1e-5)


class CausalConv(nn.Module):
    """Causal convolution over time, kernel 4, in groups of two channels, without bias or activation."""

    def __init__(self, width: int):
        super().__init__()
        reference = nn.Conv1d(width, width, KERNEL_SIZE, groups=width // 2, bias=False)
        self.weight = reference.weight  # (width, 2, kernel); the last tap meets the current frame

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (B, V, 2H), frames before the first counting as zero.

        Over one short sequence, each group's convolution is a banded (2V, 2V) matrix: one batched product.
        """
        time = torch.arange(x.shape[1], device=x.device)
        lag = KERNEL_SIZE - 1 - torch.arange(KERNEL_SIZE, device=x.device)  # of each tap
        shift = (time - time[:, None] == lag[:, None, None]).to(x.dtype)  # (kernel, from V, to V)
        taps = self.weight.unflatten(0, (-1, 2))  # (H, 2 out, 2 in, kernel)
        band = torch.einsum("goik,kst->gsito", taps, shift).flatten(3, 4).flatten(1, 2)  # (H, 2V, 2V)
        groups = x.unflatten(-1, (-1, 2)).permute(2, 0, 1, 3).flatten(2)  # (H, B, 2V)
        return (groups @ band).unflatten(-1, (-1, 2)).permute(1, 2, 0, 3).flatten(2)  # (B, V, 2H)


class SSD(nn.Module):
    """Selective state space of Mamba-2 as one masked product (state-space duality).

    ``y = (G * (C B^T)) (delta x) + D x`` with ``G[t, s] = exp(sum_{r=s+1..t} A delta_r)`` for s <= t, else 0.
    """

    def __init__(self, width: int):
        super().__init__()
        n_heads = width // HEAD_WIDTH
        self.dt_bias = nn.Parameter(torch.zeros(n_heads))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(n_heads))
        self.x_proj = Linear(width, n_heads + 2 * STATE_SIZE, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix ``x`` (B, V, 2H) over time; every head owns 128 neighbouring channels."""
        n_frames, n_heads = x.shape[1], len(self.D)
        delta, b, c = full(self.x_proj(x)).split([n_heads, STATE_SIZE, STATE_SIZE], dim=-1)
        delta = F.softplus(delta + self.dt_bias).transpose(1, 2)  # (B, heads, V)
        log_decay = delta * -self.A_log.exp()[:, None]
        ones = torch.ones(n_frames, n_frames, dtype=torch.bool, device=x.device)
        # Summed from s + 1 to t directly: the difference of two running sums would lose digits.
        gap = (
            log_decay[..., None].masked_fill(ones.triu(), 0).cumsum(-2).masked_fill(ones.triu(1), -torch.inf)
        )
        mix = gap.exp() * (c @ b.transpose(1, 2))[:, None] * delta[..., None, :]  # (B, heads, t, s)
        mix = mix + self.D[:, None, None] * torch.eye(n_frames, device=x.device)  # the skip, on the diagonal
        heads = x.unflatten(-1, (n_heads, HEAD_WIDTH)).transpose(1, 2)  # (B, heads, V, 128)
        return (mix.to(x.dtype) @ heads).transpose(1, 2).flatten(-2)  # (B, V, 2H)


class Attention(nn.Module):
    """The projections of four-head attention: query, key and value without bias, output with bias."""

    def __init__(self, width: int):
        super().__init__()
        self.query = Linear(width, width, bias=False)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width, bias=False)
        self.output = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from every token of ``x`` (B, V, H) to all of them."""
        weight = torch.cat([self.query.weight, self.key.weight, self.value.weight])
        query, key, value = (  # one wide product for all three
            each.unflatten(-1, (N_HEADS, -1)).transpose(1, 2)  # (B, heads, V, H / heads)
            for each in product(x, weight).chunk(3, dim=-1)
        )
        return self.output(attend(query, key, value).transpose(1, 2).flatten(-2))


class Encoder(nn.Module):
    """Visible frames to tokens: projection, expansion, convolution, SSD with a gate, attention."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_norm = LayerNorm(input_size)
        self.expand_norm = RMSNorm(hidden_size)
        self.input_proj = Linear(input_size, hidden_size, bias=False)
        self.expand_proj = Linear(hidden_size, 4 * hidden_size, bias=False)
        self.conv = CausalConv(2 * hidden_size)
        self.ssd = SSD(2 * hidden_size)
        self.output_proj = Linear(2 * hidden_size, hidden_size)
        self.attention_norm = LayerNorm(hidden_size)
        self.attention = Attention(hidden_size)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames (B, V, D) into tokens (B, V, H)."""
        t = self.project(frames)  # (B, V, H)
        a, z = self.expand_proj(self.expand_norm(t)).chunk(2, dim=-1)  # (B, V, 2H) each
        s = self.ssd(self.conv(a))
        g = self.output_proj(s * F.silu(z)) + t  # (B, V, H)
        return g + self.attention(self.attention_norm(g))

    def project(self, frames: Tensor) -> Tensor:
        """``W_in LayerNorm(x)``, (B, V, D) -> (B, V, H), with the norm's weight and bias folded into W_in.

        ``W (g * n + c) = (W * g) n + W c`` for the normalised frame n: the same number, and the backward pass
        is spared one of the largest products, the gradient with respect to the frames.
        """
        norm, weight = self.input_norm, self.input_proj.weight
        normalised = F.layer_norm(frames, norm.normalized_shape, eps=norm.eps)
        return product(normalised, weight * norm.weight, weight @ norm.bias)


class Decoder(nn.Module):
    """Frame codes to the reconstruction of the hidden frames.

    The M mask tokens are equal and carry no position, so their M outputs are equal too. This computes that
    one output: a single query, the mask token, over V + 1 keys, with log(M) added to its own logit. As the
    query is the same for every video, ``W_k^T q`` is one vector per head and no key is ever projected; and
    as values are linear in the tokens, they are projected after pooling.
    """

    def __init__(self, input_size: int, decoder_size: int, hashcode_size: int):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, hashcode_size))
        self.input_proj = Linear(hashcode_size, decoder_size, bias=False)
        self.norm = LayerNorm(decoder_size)
        self.attention = Attention(decoder_size)
        self.output_proj = Linear(decoder_size, input_size)

    def forward(self, codes: Tensor, n_hidden: int) -> Tensor:
        """Reconstruct from codes (B, V, b) the vector (B, D) shared by all ``n_hidden`` hidden frames."""
        width = self.norm.weight.shape[0] // N_HEADS
        mask_token = self.input_proj(self.mask_token[0])  # (1, H')
        tokens, mask = self.norm(self.input_proj(codes)), self.norm(mask_token)  # (B, V, H'), (1, H')
        query = self.attention.query(mask).view(N_HEADS, 1, width)
        key = self.attention.key.weight.unflatten(0, (N_HEADS, width))  # (heads, width, H')
        key_query = (query @ key)[:, 0] / math.sqrt(width)  # (heads, H')
        own = (mask @ key_query.T + math.log(n_hidden)).expand(len(codes), 1, N_HEADS)
        logits = torch.cat([tokens @ key_query.T, own], dim=1)  # (B, V + 1, heads)
        weights = full(logits).softmax(dim=1).transpose(1, 2)  # (B, heads, V + 1)
        pooled = weights[..., :-1] @ tokens + weights[..., -1:] * mask  # (B, heads, H')
        value = self.attention.value.weight.unflatten(0, (N_HEADS, width))  # (heads, width, H')
        y = (pooled.transpose(0, 1) @ value.transpose(1, 2)).transpose(0, 1).flatten(1)  # (B, H')
        return self.output_proj(mask_token + self.attention.output(y))  # (B, D)


class WSCH(nn.Module):
    """The wide-shallow autoencoder.

    Args:
        input_size: width D of a frame feature.
        hidden_size: width H of the encoder, a multiple of 64.
        decoder_size: width H' of the decoder, a multiple of 4.
        hashcode_size: bits b of a code.
        n_clusters: rows of ``centers``, the sign centers of the training cycle (zeros until its first step).

    Raises:
        ValueError: a width is not divisible as the heads need.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 1024,
        decoder_size: int = 1024,
        hashcode_size: int = 64,
        n_clusters: int = 800,
    ):
        super().__init__()
        if hidden_size % (HEAD_WIDTH // 2):
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of {HEAD_WIDTH // 2}")
        if decoder_size % N_HEADS:
            raise ValueError(f"decoder_size {decoder_size} is not a multiple of {N_HEADS}")
        self.bfloat16 = False  # matrix products in bfloat16; everything else stays in float32
        self.register_buffer("centers", torch.zeros(n_clusters, hashcode_size))
        self.encoder = Encoder(input_size, hidden_size)
        self.decoder = Decoder(input_size, decoder_size, hashcode_size)
        self.hash_layer = HashLayer(hidden_size, hashcode_size)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by the names of their settings; ``n_clusters`` is one once there are centers."""
        sizes = {
            "input_size": self.encoder.input_proj.in_features,
            "hidden_size": self.encoder.input_proj.out_features,
            "decoder_size": self.decoder.input_proj.out_features,
            "hashcode_size": self.hash_layer.linear.out_features,
        }
        return sizes | ({"cfg.n_clusters": len(self.centers)} if self.centers.any() else {})

    def forward(self, frames: Tensor, mask: Tensor) -> Output:
        """Hash the visible frames of every view and reconstruct its hidden ones.

        Args:
            frames: frame features, (B, L, D).
            mask: True = hidden, the same number in every row; (B, L), or (2B, L) for two views of each video,
                view 1 of all videos first. Best left on the CPU: its shape decides the shapes here.

        Returns:
            ``reconstruction`` (B or 2B, D) and ``embedding`` (B or 2B, b).
        """
        codes = self.frame_codes(visible_frames(frames, mask))  # (B, V, b)
        with self.autocast(frames):
            reconstruction = self.decoder(codes, mask.shape[1] - codes.shape[1])
        return Output(full(reconstruction), video_embedding(codes))

    def embed(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Only the embedding of ``forward``, (B or 2B, b)."""
        return video_embedding(self.frame_codes(visible_frames(frames, mask)))

    def hash(self, frames: Tensor) -> Tensor:
        """Video codes ``sign(mean of all frame codes)``, (B, L, D) -> (B, b) in {-1, 0, +1}."""
        return sign(self.frame_codes(frames).mean(1))

    def frame_codes(self, frames: Tensor) -> Tensor:
        """Codes of visible frames, (B, V, D) -> (B, V, b) in {-1, +1}."""
        with self.autocast(frames):
            return self.hash_layer(self.encoder(frames))

    def autocast(self, frames: Tensor) -> torch.autocast:
        """The precision of the matrix products from here on."""
        return torch.autocast(frames.device.type, torch.bfloat16, enabled=self.bfloat16)


def reconstruction_loss(reconstruction: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """``1 - mean over videos and hidden frames of cos(r, x)`` against the raw features, views added.

    As r is one vector per video, the mean over its hidden frames needs only the mean of the unit-length
    frames, ``w @ frames`` with ``w = hidden / max(||x||, 1e-8) / M``. An all-zero frame contributes cos 0.

    Args:
        reconstruction: (B, D), or (2B, D) for two views.
        frames: clean frame features, (B, L, D).
        mask: True = hidden, (B, L) or (2B, L).

    Returns:
        A scalar in [0, 2] for each view.
    """
    n_videos = len(frames)
    hidden = beside(frames, mask).view(-1, n_videos, mask.shape[1]).transpose(0, 1)
    norms = torch.linalg.vector_norm(frames, dim=-1).clamp_min(1e-8)  # (B, L)
    weights = hidden / norms[:, None] / hidden.sum(-1, keepdim=True)  # (B, views, L)
    target = weights @ frames  # (B, views, D)
    unit = F.normalize(full(reconstruction), dim=-1, eps=1e-8).view(-1, n_videos, frames.shape[-1])
    cos = (unit.transpose(0, 1) * target).sum(-1)  # (B, views)
    return (1 - cos.mean(0)).sum()


def cluster_loss(embedding: Tensor, centers: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of ``cos(h, center_k) / temperature`` towards its own argmax, mean over videos.

    Args:
        embedding: video embeddings of one view, (B, b).
        centers: sign centers, (n_clusters, b); no gradient. An all-zero center gives cos 0. Embeddings are
            means of a few signs, so exact ties are common: they go to the lowest center.
        temperature: the softmax temperature, above 0.

    Returns:
        A scalar.
    """
    cos = F.normalize(embedding, dim=-1, eps=1e-8) @ F.normalize(centers.detach(), dim=-1, eps=1e-8).T
    target = (cos >= cos.amax(1, keepdim=True) - 1e-6).byte().argmax(1)
    return F.cross_entropy(cos / temperature, target)  # logits (B, n_clusters)


# Published module names and ours. Parameters keep their last name (weight, bias, dt_bias, ...), and the
# modules their registration order, so Adam's numbered states need no map.
# Some releases say En.ssd for En.ssm.
PUBLISHED_NAMES = {
    "En.Norm": "encoder.input_norm",
    "En.Norm1": "encoder.expand_norm",
    "En.in_proj": "encoder.input_proj",
    "En.expand_proj": "encoder.expand_proj",
    "En.conv": "encoder.conv",
    "En.ssm": "encoder.ssd",
    "En.ssm.x_proj": "encoder.ssd.x_proj",
    "En.out_proj": "encoder.output_proj",
    "En.norm1": "encoder.attention_norm",
    "En.att1.linear_q": "encoder.attention.query",
    "En.att1.linear_k": "encoder.attention.key",
    "En.att1.linear_v": "encoder.attention.value",
    "En.att1.linear_output": "encoder.attention.output",
    "De": "decoder",
    "De.encoder_to_decoder": "decoder.input_proj",
    "De.norm": "decoder.norm",
    "De.att.linear_q": "decoder.attention.query",
    "De.att.linear_k": "decoder.attention.key",
    "De.att.linear_v": "decoder.attention.value",
    "De.att.linear_output": "decoder.attention.output",
    "De.out_proj": "decoder.output_proj",
    "hash.linear": "hash_layer.linear",
    "hash.ln": "hash_layer.norm",
}


def load_published(source: str | Path | Mapping, name: str = "state dict") -> WSCH:
    """Build the network that a published checkpoint holds, every size read off its weights.

    Args:
        source: path of a ``.pth`` file, its content (a dict with ``berthash``), or the state dict itself.
        name: what to call a source that is not a path in an error.

    Raises:
        BadInput: the file cannot be read, is a checkpoint of ours, or its names or weights are not those of a
            WSCH network.
    """
    state, name = read_published(source, name, ("berthash", *WRAPPERS))
    state = {key.replace("En.ssd.", "En.ssm."): value for key, value in state.items()}
    published = {ours: module for module, ours in PUBLISHED_NAMES.items()}
    names = {"cluster_centers": "centers"}
    for ours in _weight_names() - {"centers"}:
        module, _, leaf = ours.rpartition(".")
        names[f"{published[module]}.{leaf}"] = ours
    return build_network(_sized, state, names, name)


def from_state(state: Mapping[str, Tensor], name: str) -> WSCH:
    """Build the network of a state dict under our names, every size read off the weights.

    Args:
        state: weights by name.
        name: what to call their source in an error.

    Raises:
        BadInput: its names or weights are not those of a WSCH network.
    """
    return build_network(_sized, state, {ours: ours for ours in _weight_names()}, name)


def _weight_names() -> set[str]:
    """The names of all weights: the same at every size."""
    with torch.device("meta"):
        return set(WSCH(1, HEAD_WIDTH // 2, N_HEADS, 1, 1).state_dict())


def _sized(weights: Mapping[str, Tensor]) -> WSCH:
    """An empty network of the sizes that the weights have."""
    hidden_size, input_size = weights["encoder.input_proj.weight"].shape
    decoder_size, hashcode_size = weights["decoder.input_proj.weight"].shape
    return WSCH(input_size, hidden_size, decoder_size, hashcode_size, len(weights["centers"]))
