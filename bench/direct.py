"""The direct formulation: WSCH's network and losses as the equations are written, nothing shortened.

What the benches compare the package with, and an oracle for its tests. Each view is a forward pass of its
own, the state space runs in its chunked form with all four terms, the convolution is the library's, the
decoder computes all L tokens and the reconstruction loss compares every hidden frame. Parameters have the
same names as in ``model.WSCH``, so that one's state dict loads into the other.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics import binarize

N_HEADS, STATE_SIZE, HEAD_WIDTH, KERNEL_SIZE = 4, 64, 128, 4


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight``."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (..., width)."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Conv(nn.Module):
    """The grouped causal convolution by the library."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(nn.Conv1d(width, width, KERNEL_SIZE, groups=width // 2, bias=False).weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (B, V, 2H)."""
        padded = F.pad(x.transpose(1, 2), (KERNEL_SIZE - 1, 0))
        return F.conv1d(padded, self.weight, groups=len(self.weight) // 2).transpose(1, 2)


class SSD(nn.Module):
    """Mamba-2's state space in its chunked form (Dao and Gu, 2024, listing 1); the sequence is one chunk."""

    def __init__(self, width: int):
        super().__init__()
        n_heads = width // HEAD_WIDTH
        self.dt_bias = nn.Parameter(torch.zeros(n_heads))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(n_heads))
        self.x_proj = nn.Linear(width, n_heads + 2 * STATE_SIZE, bias=False)

    def forward(self, a: Tensor) -> Tensor:
        """Mix ``a`` (B, V, 2H) over time."""
        delta, b, c = self.x_proj(a).split([len(self.D), STATE_SIZE, STATE_SIZE], dim=-1)
        delta = F.softplus(delta + self.dt_bias)  # (B, V, heads)
        heads = a.unflatten(-1, (-1, HEAD_WIDTH))  # (B, V, heads, 128)
        x = (heads * delta[..., None])[:, None]  # (B, 1 chunk, V, heads, 128)
        b, c = b[:, None, :, None], c[:, None, :, None]  # (B, 1, V, 1 group, 64)
        b, c = (each.expand(-1, -1, -1, len(self.D), -1) for each in (b, c))
        log_decay = (delta * -self.A_log.exp()).transpose(1, 2)[:, :, None]  # (B, heads, 1, V)
        running = log_decay.cumsum(-1)
        within = segment_sum(log_decay).exp()
        diagonal = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", c, b, within, x)
        to_end = (running[..., -1:] - running).exp()
        states = torch.einsum("bclhn,bhcl,bclhp->bchpn", b, to_end, x)
        states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
        across = segment_sum(F.pad(running[..., -1], (1, 0))).exp()
        states = torch.einsum("bhzc,bchpn->bzhpn", across, states)[:, :-1]
        earlier = torch.einsum("bclhn,bchpn,bhcl->bclhp", c, states, running.exp())
        return ((diagonal + earlier)[:, 0] + self.D[:, None] * heads).flatten(-2)


def segment_sum(x: Tensor) -> Tensor:
    """``out[t, s] = sum of x[s + 1 .. t]`` for s <= t, else -inf."""
    n = x.shape[-1]
    ones = torch.ones(n, n, dtype=torch.bool)
    x = x[..., None].expand(*x.shape, n).masked_fill(~ones.tril(-1), 0)
    return x.cumsum(-2).masked_fill(~ones.tril(), -torch.inf)


class Attention(nn.Module):
    """Four heads, softmax of scaled products."""

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over ``x`` (B, tokens, width)."""
        query, key, value = (
            linear(x).unflatten(-1, (N_HEADS, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)
        return self.output((weights @ value).transpose(1, 2).flatten(-2))


class Encoder(nn.Module):
    """Section 3 of the paper's method: visible frames to tokens."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_norm = nn.LayerNorm(input_size)
        self.expand_norm = RMSNorm(hidden_size)
        self.input_proj = nn.Linear(input_size, hidden_size, bias=False)
        self.expand_proj = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.conv = Conv(2 * hidden_size)
        self.ssd = SSD(2 * hidden_size)
        self.output_proj = nn.Linear(2 * hidden_size, hidden_size)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = Attention(hidden_size)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode ``frames`` (B, V, D) into tokens (B, V, H)."""
        t = self.input_proj(self.input_norm(frames))
        a, z = self.expand_proj(self.expand_norm(t)).chunk(2, dim=-1)
        s = self.ssd(self.conv(a))
        g = self.output_proj(s * F.silu(z)) + t
        return g + self.attention(self.attention_norm(g))


class HashLayer(nn.Module):
    """Tokens to per-frame codes."""

    def __init__(self, hidden_size: int, hashcode_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, hashcode_size)
        self.norm = nn.LayerNorm(hashcode_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, V, H) to codes (B, V, b)."""
        return binarize(self.norm(self.linear(tokens)))


class Decoder(nn.Module):
    """All L tokens: frame codes, then M mask tokens."""

    def __init__(self, input_size: int, decoder_size: int, hashcode_size: int):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, hashcode_size))
        self.input_proj = nn.Linear(hashcode_size, decoder_size, bias=False)
        self.norm = nn.LayerNorm(decoder_size)
        self.attention = Attention(decoder_size)
        self.output_proj = nn.Linear(decoder_size, input_size)

    def forward(self, codes: Tensor, n_hidden: int) -> Tensor:
        """Reconstruct from codes (B, V, b) the hidden frames, (B, M, D)."""
        tokens = torch.cat([codes, self.mask_token.expand(len(codes), n_hidden, -1)], dim=1)
        y = self.input_proj(tokens)
        y = y + self.attention(self.norm(y))
        return self.output_proj(y)[:, -n_hidden:]


class Direct(nn.Module):
    """The whole network; give it the state dict of a ``model.WSCH`` of the same sizes."""

    def __init__(
        self, input_size: int, hidden_size: int, decoder_size: int, hashcode_size: int, n_clusters: int
    ):
        super().__init__()
        self.register_buffer("centers", torch.zeros(n_clusters, hashcode_size))
        self.encoder = Encoder(input_size, hidden_size)
        self.decoder = Decoder(input_size, decoder_size, hashcode_size)
        self.hash_layer = HashLayer(hidden_size, hashcode_size)

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One view: reconstructions of the hidden frames (B, M, D) and embeddings (B, b)."""
        n_videos, n_frames, width = frames.shape
        visible = frames[~mask].view(n_videos, -1, width)
        codes = self.hash_layer(self.encoder(visible))
        return self.decoder(codes, n_frames - codes.shape[1]), F.normalize(codes.mean(1), dim=-1)

    def hash(self, frames: Tensor) -> Tensor:
        """Video codes from all frames, (B, b)."""
        return self.hash_layer(self.encoder(frames)).mean(1).sign()


def reconstruction_loss(reconstruction: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """One view: ``1 - mean cos`` over every hidden frame."""
    hidden = frames[mask].view_as(reconstruction)
    return 1 - F.cosine_similarity(reconstruction, hidden, dim=-1, eps=1e-8).mean()


def cluster_loss(embedding: Tensor, centers: Tensor, temperature: float) -> Tensor:
    """One view: cross-entropy towards the nearest center."""
    cos = F.cosine_similarity(embedding[:, None], centers, dim=-1, eps=1e-8) / temperature
    return F.cross_entropy(cos, cos.argmax(1))


def contrastive_loss(one: Tensor, two: Tensor, temperature: float, tau_plus: float) -> Tensor:
    """Debiased contrastive loss of two views."""
    h = torch.cat([one, two])
    n = len(h) - 2
    similarity = (h @ h.T / temperature).exp()
    pos = (h * torch.cat([two, one])).sum(-1).div(temperature).exp()
    keep = ~torch.eye(len(one), dtype=torch.bool).repeat(2, 2)
    neg = similarity[keep].view(len(h), n).sum(1)
    ng = ((neg - tau_plus * n * pos) / (1 - tau_plus)).clamp(min=n * math.exp(-1 / temperature))
    return -(pos / (pos + ng)).log().mean()
