"""The direct formulation of ConMH: network and losses as the equations are written, nothing shortened.

What ``bench/step.py`` compares the package with, and an oracle for its tests. Each view is a forward pass of
its own that embeds every frame and then takes the visible ones, every block of the decoder computes all L
tokens, attention and gelu are written out, hidden frames are gathered and compared. Parameters have the same
names as in ``conmh.model.ConMH``, so that one's state dict loads into the other.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.direct import HashLayer, contrastive_loss
from layers import position_encoding


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(width)) v``, each (B, heads, tokens, width of a head)."""
    return (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1) @ value


def gelu(x: Tensor) -> Tensor:
    """``x`` times the normal distribution function of it."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


class Attention(nn.Module):
    """Heads ``floor(width / n_heads)`` wide, softmax of scaled products; no bias on keys."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads, inner = n_heads, width // n_heads * n_heads
        self.query_bias, self.value_bias = (nn.Parameter(torch.zeros(inner)) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.output = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over ``x`` (B, tokens, width)."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query, key, value = (
            each.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for each in (query + self.query_bias, key, value + self.value_bias)
        )
        return self.output(attend(query, key, value).transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Attention, then two linear layers with gelu between them, each with a norm before and added on."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, n_heads)
        self.expand_norm = nn.LayerNorm(width, eps=1e-6)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x`` (B, tokens, width)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.contract(gelu(self.expand(self.expand_norm(x))))


class Blocks(nn.Module):
    """Blocks, norm, head: the decoder, and all that follows the encoder's embedding."""

    def __init__(self, width: int, output_size: int, n_blocks: int, n_heads: int):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width, n_heads) for _ in range(n_blocks)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, output_size)


class DirectConMH(nn.Module):
    """The whole network; give it the state dict of a ``conmh.model.ConMH`` of the same sizes."""

    def __init__(
        self, input_size: int, hidden_size: int, decoder_size: int, hashcode_size: int, n_blocks: int,
        n_heads: int, decoder_blocks: int, decoder_heads: int,
    ):  # fmt: skip
        super().__init__()
        self.register_buffer("heads", torch.zeros(2))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_size))
        self.encoder = Blocks(hidden_size, hidden_size, n_blocks, n_heads)
        self.encoder.embed = nn.Linear(input_size, hidden_size)
        self.decoder = Blocks(decoder_size, input_size, decoder_blocks, decoder_heads)
        self.decoder_input = nn.Linear(hashcode_size, decoder_size, bias=False)
        self.hash_layer = HashLayer(hidden_size, hashcode_size)

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One view: reconstructions of the hidden frames (B, M, D) and embeddings (B, b)."""
        n_videos, n_frames, _ = frames.shape
        encoder, decoder, width = self.encoder, self.decoder, self.mask_token.shape[-1]
        e = encoder.embed(frames) + position_encoding(n_frames, encoder.embed.out_features)
        e = e[~mask].view(n_videos, -1, e.shape[-1])  # (B, V, H)
        codes = self.hash_layer(encoder.head(encoder.norm(encoder.blocks(e))))

        position = position_encoding(n_frames, width).expand(n_videos, -1, -1)
        visible, hidden = (position[each].view(n_videos, -1, width) for each in (~mask, mask))
        tokens = torch.cat([self.decoder_input(codes) + visible, self.mask_token + hidden], dim=1)
        tokens = decoder.norm(decoder.blocks(tokens))  # (B, L, H')
        return decoder.head(tokens[:, -hidden.shape[1] :]), F.normalize(codes.mean(1), dim=-1)


def views_loss(net: DirectConMH, frames: Tensor, masks: Tensor) -> Tensor:
    """The loss (spec: section 2) at the published values for FCVID, a forward for each view.

    Args:
        net: the network.
        frames: (B, L, D).
        masks: True = hidden, those of view 1 and then those of view 2, (2B, L).
    """
    outs = [(*net(frames, mask), mask) for mask in masks.chunk(2)]
    loss = sum(F.mse_loss(frame, frames[mask].view_as(frame)) for frame, _, mask in outs)
    return loss + contrastive_loss(outs[0][1], outs[1][1], temperature=0.5, tau_plus=0.1)
