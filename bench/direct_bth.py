"""The direct formulation of BTH: network, disturbed batch and losses as published, nothing shortened.

What ``bench/step.py`` compares the package with, and an oracle for its tests. Both videos of a pair are a
forward pass of their own on a disturbed copy of the batch; every dropout is a module of its own, gelu and
attention are written out, all frames are restored and compared. Parameters have the same names as in
``bth.model.BTH``, so that one's state dict loads into the other.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bth.model import position_encoding
from bth.pairs import Disturbance
from metrics import binarize

DROPOUT = 0.1


class Norm(nn.Module):
    """``weight (x - mean) / (std + 1e-6) + bias``."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``x``."""
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.weight * (x - mean) / (std + 1e-6) + self.bias


class Attention(nn.Module):
    """One head, softmax of scaled products."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over ``x`` (B, L, H)."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        scores = query @ key.transpose(1, 2) / math.sqrt(x.shape[-1])
        return self.output(self.dropout(scores.softmax(dim=-1)) @ value)


class FeedForward(nn.Module):
    """Linear, gelu in its tanh form, dropout, linear."""

    def __init__(self, width: int):
        super().__init__()
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every frame of ``x`` (B, L, H)."""
        x = self.expand(x)
        x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return self.contract(self.dropout(x))


class DirectBTH(nn.Module):
    """The whole network; give it the state dict of a ``bth.model.BTH`` of the same sizes."""

    def __init__(self, input_size: int, hidden_size: int, hashcode_size: int):
        super().__init__()
        self.embed = nn.Linear(input_size, hidden_size)
        self.attention, self.feed_forward = Attention(hidden_size), FeedForward(hidden_size)
        self.attention_norm, self.feed_forward_norm = Norm(hidden_size), Norm(hidden_size)
        self.hash_layer = nn.Linear(hidden_size, hashcode_size)
        self.restore = nn.Linear(hashcode_size, input_size)
        self.dropouts = nn.ModuleList(nn.Dropout(DROPOUT) for _ in range(4))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (B, L, b), reconstruction (B, L, D) and hidden frames (B, L, H) of one video of each pair."""
        drop = self.dropouts
        e = drop[0](self.embed(frames) + position_encoding(*frames.shape[1:2], self.embed.out_features))
        e = e + drop[1](self.attention(self.attention_norm(e)))
        hidden = drop[3](e + drop[2](self.feed_forward(self.feed_forward_norm(e))))
        codes = binarize(self.hash_layer(hidden))
        return codes, self.restore(codes), hidden


def disturb(frames: Tensor, plan: Disturbance, replacement: Tensor) -> Tensor:
    """A disturbed copy of clean frames (..., L, D), the replacements (R, D) in the plan's order."""
    disturbed = frames.clone()
    disturbed[torch.from_numpy(plan.zero)] = 0
    disturbed[torch.from_numpy(plan.replace)] = replacement
    return disturbed


def pair_loss(net: DirectBTH, clean: Tensor, disturbed: Tensor, target: Tensor, nearest: Tensor) -> Tensor:
    """The weighted sum of the three losses (spec: section 3), a forward for each video of the pairs.

    Args:
        net: the network.
        clean: frames of both videos of B pairs, (2, B, L, D).
        disturbed: what the network sees of them, (2, B, L, D).
        target: +1 for similar pairs, -1 for dissimilar ones, (B,).
        nearest: the anchors of their pseudo labels, (2, B, H).
    """
    (codes1, frames1, hidden1), (codes2, frames2, hidden2) = (net(each) for each in disturbed)
    mask = (F.mse_loss(frames1, clean[0]) + F.mse_loss(frames2, clean[1])) / 2
    similarity = (codes1.mean(1) * codes2.mean(1)).sum(1) / codes1.shape[-1]
    neighborhood = F.mse_loss(similarity, target)
    cluster = F.mse_loss(hidden1.mean(1), nearest[0]) + F.mse_loss(hidden2.mean(1), nearest[1])
    return 0.92 * mask + 0.08 * neighborhood + 0.8 * cluster
