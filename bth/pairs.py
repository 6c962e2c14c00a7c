"""The random side of BTH's training: partners of videos, disturbed frames, and reading what a batch needs.

Partners and disturbance are drawn for a whole pass at once, before its first batch, from one generator. So
they do not depend on batch boundaries, on workers or on the blocks in which the similarity file is read.

Axes: N training videos, B videos drawn, L frames, D feature width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bth.similarity import BLOCK, Similarity
from engine import ranks
from engine.device import check_stop
from engine.feed import to_device
from formats.files import progress

SIMILAR, DISSIMILAR = 1, 2  # the tags that are drawn; 0, not stored, stands in for a missing 2
DISTURBED = 0.15  # probability that a frame is disturbed ...
ZEROED, REPLACED = 0.8, 0.1  # ... and what then: zeros, another frame; the rest stays


def draw_pairs(
    similarity: Similarity, videos: np.ndarray, rng: np.random.Generator, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """A partner for every video: with probability 1/2 a similar one, else a dissimilar one.

    Similar is tag 1, dissimilar tag 2 or, in a row without a 2, tag 0. A row without any 1, or with neither 2
    nor 0, uses what it has; with nothing at all it pairs with itself.

    Args:
        similarity: tags of the N training videos.
        videos: the videos of a pass in their order, (B,).
        rng: draws two numbers for each of ``videos``, in this order.
        block: rows read at a time; the draw does not depend on it.

    Returns:
        Partners (B,) int64, and targets (B,) float32: +1 similar, -1 dissimilar.

    Raises:
        Interrupted: a signal came; nothing is lost, no batch of the pass has begun.
    """
    # Faithful: a video has tag 1 towards itself, so it may be its own partner (disturbed independently).
    similar = rng.random(len(videos)) < 0.5
    place = rng.random(len(videos))  # where among its candidates the partner stands, in [0, 1)
    return _find_partners(similarity, videos, similar, place, block)


@ranks.on_first  # the tags are read once, not by every rank
def _find_partners(
    similarity: Similarity, videos: np.ndarray, similar: np.ndarray, place: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    partner = np.empty(len(videos), np.int64)
    target = np.empty(len(videos), np.float32)
    order = np.argsort(videos, kind="stable")  # the file is read from front to back
    for start in progress(range(0, len(videos), block), "pairs"):
        check_stop()
        drawn = order[start : start + block]
        partner[drawn], target[drawn] = _draw_block(similarity, videos[drawn], similar[drawn], place[drawn])
    return partner, target


def _draw_block(
    similarity: Similarity, videos: np.ndarray, similar: np.ndarray, place: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    distinct, row = np.unique(videos, return_inverse=True)
    rows = similarity.rows(distinct)
    entries = {tag: np.flatnonzero(rows.tag == tag) for tag in (SIMILAR, DISSIMILAR)}
    bounds = {tag: np.searchsorted(found, rows.indptr) for tag, found in entries.items()}  # each (R + 1,)
    count = {tag: np.diff(bound)[row] for tag, bound in bounds.items()}
    count[0] = (len(similarity) - np.diff(rows.indptr))[row]

    negative_tag = np.where(count[DISSIMILAR] > 0, DISSIMILAR, 0)
    has_negative = (count[DISSIMILAR] > 0) | (count[0] > 0)
    has_positive = count[SIMILAR] > 0
    tag = np.where(np.where(similar, has_positive, ~has_negative), SIMILAR, negative_tag)
    tag = np.where(has_positive | has_negative, tag, -1)  # -1: nothing to draw

    partner = videos.astype(np.int64)
    for wanted in (SIMILAR, DISSIMILAR):
        drawn = tag == wanted
        rank = (place[drawn] * count[wanted][drawn]).astype(np.int64)
        partner[drawn] = rows.indices[entries[wanted][bounds[wanted][row[drawn]] + rank]]
    for position in np.flatnonzero(tag == 0):
        stored = rows.indices[rows.indptr[row[position]] : rows.indptr[row[position] + 1]]
        partner[position] = _absent(stored, int(place[position] * count[0][position]))
    return partner, np.where((tag == SIMILAR) | (tag == -1), 1, -1)


def _absent(stored: np.ndarray, rank: int) -> int:
    """The number of the given rank among those not in ``stored`` (ascending).

    At a uniform rank this is the rejection method's draw (again until the number is not stored), in one go.
    """
    return rank + int(np.searchsorted(stored - np.arange(len(stored)), rank, side="right"))


@dataclass(frozen=True)
class Disturbance:
    """Which frames the network does not get to see; all arrays (..., L), one entry a frame."""

    zero: np.ndarray  # bool, True = becomes zeros
    replace: np.ndarray  # bool, True = becomes frame ``frame`` of training video ``video``
    video: np.ndarray  # int32, of use where replace is True
    frame: np.ndarray  # int32, likewise

    def batch(self, positions: slice | np.ndarray) -> "Disturbance":
        """The plan of some positions of the pass (the last axis but one)."""
        arrays = (self.zero, self.replace, self.video, self.frame)
        return Disturbance(*(array[..., positions, :] for array in arrays))


def draw_disturbance(shape: tuple[int, ...], n_videos: int, rng: np.random.Generator) -> Disturbance:
    """Disturb each frame with probability 0.15: 80% of these become zeros, 10% a random frame, 10% stay.

    Args:
        shape: (2, B, L) for both videos of B pairs, (B, L) for single videos.
        n_videos: N; replacements come from any frame of any training video.
        rng: draws everything.
    """
    chance = rng.random(shape, dtype=np.float32)
    zero = chance < DISTURBED * ZEROED
    replace = ~zero & (chance < DISTURBED * (ZEROED + REPLACED))
    video = rng.integers(n_videos, size=shape, dtype=np.int32)
    return Disturbance(zero, replace, video, rng.integers(shape[-1], size=shape, dtype=np.int32))


def read_disturbed(
    read: Callable[[np.ndarray], Tensor], videos: np.ndarray, plan: Disturbance
) -> tuple[Tensor, Tensor, Tensor]:
    """Clean frames of a batch and what stands in for some, by a single read, for ``BTH.masked``.

    Args:
        read: frames (rows, L, D) of rows in any order and with repeats.
        videos: (2, B) for both videos of B pairs, (B,) for single videos.
        plan: for these videos, (2, B, L) or (B, L).

    Returns:
        Clean frames (2B, L, D) or (B, L, D), first the first videos of all pairs; the places of the Z frames
        that become zeros, then of the R replaced ones, among all frames, (Z + R,); the replacements (R, D).
    """
    stored = read(np.concatenate((videos.ravel(), plan.video[plan.replace])))  # (rows, L, D)
    n_frames = stored.shape[1]
    others = np.arange(videos.size, len(stored)) * n_frames + plan.frame[plan.replace]
    others = to_device(torch.from_numpy(others), stored.device)
    places = np.concatenate([np.flatnonzero(plan.zero), np.flatnonzero(plan.replace)])
    # Differs: the published loader disturbs its training array in place, so its targets are disturbed too.
    return stored[: videos.size], torch.from_numpy(places), stored.flatten(0, 1)[others]
