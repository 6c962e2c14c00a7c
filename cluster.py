"""k-means on hash codes and latent features: WSCH's step 1 (`train.py`) and BTH's anchors.

Lloyd's rounds from a given start or from greedy k-means++ (spec section 7, step 1).

Axes: N points, d their width (b bits for codes), n_clusters centers, m of them moved.
Points go in blocks, so no array of N x n_clusters exists. Distances are ranked by |c|^2 / 2 - x·c, the
score: the point's own norm is the same for every center.

Points may be divided among processes. Each then has its own, in order; sums and counts are those of all, and
as sums of codes are whole numbers, centers, labels and rounds are those of one process.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from formats.files import progress

BLOCK = 1024  # points whose scores against all centers stay in the processor's cache
TOLERANCE = 1e-4  # the summed squared center shift that ends the rounds, in mean variances of a dimension
MOST_MOVED = 0.4  # share of the centers beyond which sparing the others costs more than it saves
SEED = 3346


@dataclass(frozen=True)
class KMeans:
    """Result of `kmeans`."""

    centers: Tensor  # (n_clusters, d) float32; fewer rows if empty clusters were dropped
    labels: Tensor  # (N,) int64, the nearest center of each point of this process
    inertia: float  # sum of the squared distances of all points to it
    n_iter: int  # rounds: assignments, but for the final one that a stop may ask for


def unchanged(own: Tensor, *_: int) -> Tensor:
    """The sum over all processes, and the rows of all, where there is one."""
    return own


def kmeans(
    x: Tensor,
    n_clusters: int,
    init: Tensor | None = None,
    generator: torch.Generator | None = None,
    max_iter: int = 300,
    empty: Literal["restart", "drop"] = "restart",
    total: Callable[[Tensor], Tensor] = unchanged,
    gather: Callable[[Tensor, int], Tensor] = unchanged,
) -> KMeans:
    """Lloyd's k-means (spec section 7, step 1).

    A round assigns every point to its nearest center, a tie to the lowest index, and moves the centers to
    the means of their points. The rounds end when no assignment changes, when the summed squared center
    shift is at most 1e-4 times the mean per-dimension population variance, or after `max_iter`; after the
    last two, points are assigned once more.

    `empty="restart"`: empty clusters take the points farthest from their centers, in order, and such a
    point leaves its old cluster's mean (but never leaves it empty in turn).
    `empty="drop"`, BTH's way (spec/bth section 2): clusters found empty after an assignment are dropped, and
    the center shift ends nothing.

    Args:
        x: points, (N, d), float or integer (codes in {-1, 0, +1}), on any device.
        n_clusters: the number of centers.
        init: first centers, (n_clusters, d); None seeds them with greedy k-means++, if all points are here.
        generator: CPU generator for the seeding's draws; None is one of a fixed seed.
        max_iter: the most rounds, at least 1.
        empty: what becomes of empty clusters.
        total: the sum of a tensor over all processes that have points, each its own `x`; all need the same
            `init`, and go the same rounds.
        gather: from as many rows of each of them, and the number of all, these in the order of their points.

    Returns:
        Centers (means: whoever wants codes takes the sign), labels, inertia to the final centers, rounds.

    Raises:
        ValueError: more centers than points, or none; `init` of another shape; points or `init` not finite;
            max_iter below 1; another `empty`.
    """
    x = _points(x, "points")
    n_points = int(total(torch.tensor(len(x))))
    _check_number(n_clusters, n_points, x)
    if init is not None and tuple(init.shape) != (n_clusters, x.shape[1]):
        raise ValueError(f"init: expected shape {(n_clusters, x.shape[1])}, found {tuple(init.shape)}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, found {max_iter}")
    if empty not in ("restart", "drop"):
        raise ValueError(f'empty must be "restart" or "drop", found {empty!r}')
    centers = plusplus(x, n_clusters, generator) if init is None else _points(init, "init").to(x)
    tolerance = TOLERANCE * _variance(x, centers[0], n_points, total) if empty == "restart" else -1.0

    lloyd = _Lloyd(x, n_clusters, total, gather)
    for n_iter in progress(range(1, max_iter + 1), "k-means", unit="round"):
        changed = lloyd.assign(centers)
        if not changed:
            break
        if empty == "drop":
            centers = lloyd.drop_empty()
        means = lloyd.means()
        shift = float((means - centers).square().sum())
        centers = means
        # Processes on unlike processors may round the shift differently, and must stop together.
        if n_iter == max_iter or total(torch.tensor(shift <= tolerance).int()) > 0:
            lloyd.assign(centers)
            break
    if empty == "drop":
        centers = lloyd.drop_empty()
    return KMeans(centers, lloyd.labels, lloyd.inertia(), n_iter)


def nearest(x: Tensor, centers: Tensor, k: int = 1, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The k nearest centers of every point, nearest first, a tie to the lowest index.

    Args:
        x: points, (N, d).
        centers: (n_clusters, d).
        k: how many.
        block: points to work on at once.

    Returns:
        Squared Euclidean distances, float32, (N, k), and center indices, int64, (N, k).

    Raises:
        ValueError: the widths differ, a value is not finite, or k is not between 1 and the number of centers.
    """
    x, centers = _points(x, "points"), _points(centers, "centers")
    if x.shape[1] != centers.shape[1]:
        raise ValueError(f"points {tuple(x.shape)} and centers {tuple(centers.shape)} are not of one width")
    if not 1 <= k <= len(centers):
        raise ValueError(f"k must lie between 1 and the number of centers, {len(centers)}, found {k}")
    index = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    squared = torch.empty(len(x), k, device=x.device)
    for rows, scores in _score_blocks(x, centers, block):
        for place in range(k):
            found, _ = _lowest(scores)  # (block,)
            index[rows, place] = found
            # From the difference: the score's own arithmetic would cancel where a point lies on its center.
            squared[rows, place] = (x[rows] - centers[found]).square().sum(1)
            if place + 1 < k:
                scores.scatter_(1, found[:, None], torch.inf)
    return squared, index


def plusplus(x: Tensor, n_clusters: int, generator: torch.Generator | None = None) -> Tensor:
    """Greedy k-means++ seeding: a uniform first center, then each the best of 2 + floor(ln n_clusters) draws.

    A draw takes a point with probability proportional to its squared distance from the nearest center so
    far; the best is the one that leaves the smallest sum of these.

    Args:
        x: points, (N, d), float or integer.
        n_clusters: at most N.
        generator: CPU generator of the draws; None is one of a fixed seed.

    Returns:
        Centers, all of them points, (n_clusters, d).

    Raises:
        ValueError: more centers than points, or none; points that are not finite.
    """
    x = _points(x, "points")
    _check_number(n_clusters, len(x), x)
    if generator is None:
        generator = torch.Generator().manual_seed(SEED)
    trials = 2 + int(math.log(n_clusters))
    draws = torch.rand(n_clusters, trials, generator=generator, dtype=torch.float64)
    first = int(draws[0, 0] * len(x))
    draws = draws.to(x.device, _precise(x))
    norm = x.square().sum(1)  # (N,)
    chosen = torch.empty(n_clusters, dtype=torch.int64, device=x.device)
    chosen[0] = first
    closest = (x - x[first]).square().sum(1)  # (N,) squared distance to the nearest center so far
    for place in progress(range(1, n_clusters), "k-means++", unit="center"):
        reach = closest.cumsum(0, dtype=_precise(x))  # (N,)
        drawn = torch.searchsorted(reach, draws[place] * reach[-1], right=True).clamp_(max=len(x) - 1)
        distance = torch.addmm(norm, x[drawn], x.T, alpha=-2).add_(norm[drawn, None])  # (trials, N)
        torch.minimum(distance.clamp_(min=0), closest, out=distance)
        # As a number it would be read off the device; of shape (1,) it stays there.
        best = distance.sum(1, dtype=_precise(x)).argmin(0, keepdim=True)
        chosen[place], closest = drawn[best][0], distance[best][0]
    return x[chosen]


class _Lloyd:
    """Points of this process, their assignment to the current centers, and its sums.

    Late rounds move few centers. A point whose own center stayed is then compared with the moved ones only,
    which gives the same assignment as comparing it with all.
    """

    def __init__(self, x: Tensor, n_clusters: int, total: Callable = unchanged, gather: Callable = unchanged):
        self.x, self.total, self.gather = x, total, gather
        self.labels = torch.full((len(x),), -1, device=x.device)  # (N,)
        self.score = x.new_empty(len(x))  # (N,) of the own center
        self.centers = x.new_full((n_clusters, x.shape[1]), torch.nan)
        self.sums = torch.zeros(n_clusters, x.shape[1], dtype=_precise(x), device=x.device)
        self.counts = torch.zeros(n_clusters, dtype=torch.int64, device=x.device)
        self.all_counts = self.counts  # those of all processes

    def assign(self, centers: Tensor) -> bool:
        """Assign every point to its nearest center; True if any assignment changed, in any process."""
        before = self.labels.clone()
        moved = (centers != self.centers).any(1)  # (n_clusters,)
        self.centers = centers
        few = moved.nonzero()[:, 0]  # (m,)
        if len(few) > MOST_MOVED * len(centers):
            self._search(slice(None))
        elif len(few) > 0:
            for rows, scores in _score_blocks(self.x, centers[few], BLOCK):
                found, score = _lowest(scores)
                found = few[found]
                ahead = (score < self.score[rows]) | (
                    (score == self.score[rows]) & (found < self.labels[rows])
                )
                self.labels[rows] = torch.where(ahead, found, self.labels[rows])
                self.score[rows] = torch.where(ahead, score, self.score[rows])
            self._search(moved[before].nonzero()[:, 0])  # points whose own center moved: their score is stale
        changed = (self.labels != before).nonzero()[:, 0]
        self._count(changed, before[changed], -1)
        self._count(changed, self.labels[changed], 1)
        *_, n_changed = numbers = self.total(torch.cat((self.counts, self.counts.new_tensor([len(changed)]))))
        self.all_counts = numbers[:-1]
        return bool(n_changed > 0)

    def _search(self, points: Tensor | slice) -> None:
        """Compare these points with all centers."""
        x = self.x[points]
        labels, score = x.new_empty(len(x), dtype=torch.int64), x.new_empty(len(x))
        for rows, scores in _score_blocks(x, self.centers, BLOCK):
            labels[rows], score[rows] = _lowest(scores)
        self.labels[points], self.score[points] = labels, score

    def _count(self, points: Tensor, labels: Tensor, sign: int) -> None:
        """Add points to the sums of their clusters, or take them out; -1 is no cluster."""
        points, labels = points[labels >= 0], labels[labels >= 0]
        self.sums.index_add_(0, labels, self.x[points].to(self.sums), alpha=sign)
        self.counts.index_add_(0, labels, torch.ones_like(labels), alpha=sign)

    def means(self) -> Tensor:
        """Means of the clusters; an empty one takes the farthest point whose cluster can spare it."""
        sums, counts = self.total(self.sums), self.all_counts
        empty = (counts == 0).nonzero()[:, 0].tolist()
        if empty:
            sums, counts = sums.clone(), counts.clone()
            farthest = iter(self.farthest())
            for cluster in empty:
                old, point = next((label, p) for label, p in farthest if counts[label] > 1)
                sums[old] -= point
                counts[old] -= 1
                sums[cluster] = point
                counts[cluster] = 1
        return (sums / counts[:, None]).to(self.x.dtype)

    def farthest(self) -> list[tuple[int, Tensor]]:
        """Cluster and place of points of all processes, the farthest from its center first.

        Of each process as many as there are clusters: so there is one for every empty cluster even if each of
        the others has a last point that it cannot spare.
        """
        n_clusters, squared = len(self.counts), self.squared_distance()
        far = squared.sort(descending=True, stable=True).indices[:n_clusters]
        rows = self.sums.new_full((n_clusters, 2 + self.x.shape[1]), -1)  # distance, cluster, place
        rows[: len(far)] = torch.cat((squared[far, None], self.labels[far, None], self.x[far]), 1).to(rows)
        rows = self.gather(rows, int(self.total(torch.tensor(n_clusters))))
        rows = rows[rows[:, 0].sort(descending=True, stable=True).indices]
        return list(zip(rows[:, 1].long().tolist(), rows[:, 2:], strict=True))

    def drop_empty(self) -> Tensor:
        """Renumber without the empty clusters; returns the centers left."""
        kept = self.all_counts > 0
        self.labels = (kept.cumsum(0) - 1)[self.labels]
        self.centers, self.sums = self.centers[kept], self.sums[kept]
        self.counts, self.all_counts = self.counts[kept], self.all_counts[kept]
        return self.centers

    def inertia(self) -> float:
        """Sum of squared distances to the centers."""
        return float(self.total(self.squared_distance().sum(dtype=_precise(self.x))))

    def squared_distance(self) -> Tensor:
        """Of every point from its center, (N,)."""
        return torch.cat(
            [
                (x - self.centers[labels]).square().sum(1)
                for x, labels in zip(self.x.split(BLOCK), self.labels.split(BLOCK), strict=True)
            ]
        )


def _points(x: Tensor, name: str) -> Tensor:
    """Check points (N, d); return them as float32."""
    x = torch.as_tensor(x).float()
    if x.ndim != 2:
        raise ValueError(f"{name}: expected (number, width), found {tuple(x.shape)}")
    broken = (~torch.linalg.vector_norm(x, dim=1).isfinite()).nonzero()
    if len(broken):  # a distance to NaN is NaN, and NaN is lowest
        raise ValueError(
            f"{name}: row {int(broken[0])} is not finite, or its squared length is not in float32"
        )
    return x


def _check_number(n_clusters: int, n_points: int, x: Tensor) -> None:
    """Compare the number of centers with that of points."""
    if not 1 <= n_clusters <= n_points:
        shape = (n_points, x.shape[1])
        raise ValueError(f"n_clusters must lie between 1 and the number of points: {n_clusters} of {shape}")


def _variance(x: Tensor, origin: Tensor, n_points: int, total: Callable[[Tensor], Tensor]) -> float:
    """The mean variance of a dimension of all processes' points; of codes, the sums are exact."""
    sums = torch.zeros(2, x.shape[1], dtype=_precise(x), device=x.device)
    for part in (x[start : start + BLOCK] - origin for start in range(0, len(x), BLOCK)):
        sums += torch.stack((part.sum(0, dtype=sums.dtype), part.square().sum(0, dtype=sums.dtype)))
    mean, mean_square = total(sums) / n_points
    return float((mean_square - mean.square()).mean())


def _score_blocks(x: Tensor, centers: Tensor, block: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of points and their scores |c|^2 / 2 - x·c, (block, n_clusters), in one reused buffer."""
    half = centers.square().sum(1) / 2  # (n_clusters,)
    buffer = x.new_empty(min(block, len(x)), len(centers))
    for start in range(0, len(x), block):
        part = x[start : start + block]
        rows = slice(start, start + len(part))
        yield rows, torch.addmm(half, part, centers.T, alpha=-1, out=buffer[: len(part)])


def _lowest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the lowest score of every row, the first of equals, and that score."""
    if scores.device.type == "cpu":  # numpy's is ten times as fast as torch's there
        index = torch.from_numpy(scores.numpy().argmin(1))
    else:
        index = scores.argmin(1)
    return index, scores.gather(1, index[:, None])[:, 0]


def _precise(x: Tensor) -> torch.dtype:
    """The type to sum in: float64 where there is one. Sums of codes are exact in either."""
    return torch.float32 if x.device.type == "mps" else torch.float64
