"""Hash codes and their Hamming ranking: pure functions on codes and labels.

Both systems make their codes with `binarize` and are measured with `evaluate`; nothing here knows of either.

Axes: Q queries, N database videos, b bits, K the cut of mAP@K, q queries of one block.

Codes hold -1, 0 or +1. For query q and video d the Hamming distance is (b - q·d) / 2.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from formats.bits import as_tensor, check_codes
from formats.hamming import ranked_blocks, relevant_videos

# ---------------------------------------------------------------------------------------------- hash codes


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return v.add(1).mul_(0.5).clamp_(0, 1).round_().mul_(2).sub_(1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return grad * ((v > -1) & (v <= 1))


def binarize(v: Tensor) -> Tensor:
    """Straight-through binary unit: 2 round(clip((v + 1) / 2, 0, 1)) - 1 (spec section 4).

    The gradient is 1 for -1 < v <= 1 and 0 elsewhere.

    Args:
        v: real values of any shape.

    Returns:
        Codes in {-1, +1} of v's shape and dtype; v = 0 gives -1, since round goes half to even.
    """
    return _Binarize.apply(v)


def sign(x: Tensor) -> Tensor:
    """The sign of every entry, NaN where it is NaN: torch's own would make a tie of what is no number."""
    return torch.where(x.isnan(), x, x.sign())


def hamming_distance(query: Tensor, database: Tensor) -> Tensor:
    """Hamming distance (b - q·d) / 2 between every query and database code.

    Args:
        query: codes in {-1, 0, +1}, (Q, b).
        database: codes in {-1, 0, +1}, (N, b).

    Returns:
        Multiples of one half in [0, b], float32, (Q, N).

    Raises:
        ValueError: the code lengths differ, codes hold other values (also bits 0 and 1), or there are none.
    """
    query, database = check_codes(query, database)
    return (query.float() @ database.float().T).mul_(-0.5).add_(query.shape[1] / 2)  # in place: it is large


def nearest_codes(query: Tensor, database: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K nearest database codes of every query, nearest first, a tie to the lowest index.

    Args:
        query: codes in {-1, 0, +1}, (Q, b), tensor or array; computed on its device.
        database: codes in {-1, 0, +1}, (N, b).
        k: how many.

    Returns:
        Database indices, int64, and their Hamming distances, float32, both (Q, K).

    Raises:
        ValueError: as of `evaluate`, for codes and cut.
    """
    query, database = check_codes(query, database)
    (k,) = _cuts([k], len(database))
    index = torch.empty(len(query), k, dtype=torch.int64)
    distance = torch.empty(len(query), k)
    for rows, ranking in ranked_blocks(query, database, k):
        found = database[ranking.index].float()  # (q, K, b)
        similarity = (found @ query[rows].float()[..., None])[..., 0]  # (q, K)
        index[rows], distance[rows] = ranking.index.cpu(), ((query.shape[1] - similarity) / 2).cpu()
    return index, distance


# ------------------------------------------------------------------------------------------------- metrics


@dataclass(frozen=True)
class ByRadius:
    """What lies within a Hamming radius of a query, for every radius r = 0..b; half bits count as whole."""

    precision: list[float]  # relevant within r / all within r, 0 where there is none; mean over queries
    recall: list[float]  # relevant within r / relevant in the database; mean over queries
    pairs: list[int]  # of a query and a video at a distance in (r - 1, r]
    relevant_pairs: list[int]  # of these, how many share a label


@dataclass(frozen=True)
class Evaluation:
    """Means over all queries; as {K: value} at the cuts K.

    A query without any relevant video counts 0 everywhere. What its ranking holds is said at `evaluate`.
    """

    map: dict[int, float]  # mAP@K, the sum divided by K, as published; ties ranked by database index
    tie_averaged_map: dict[int, float]  # its expectation over random tie orders, exact
    map_relevant: dict[int, float]  # as `map`, but divided by min(K, relevant in the database)
    map_retrieved: dict[int, float]  # as `map`, but divided by the relevant among the first K, 0 if none
    precision: dict[int, float]  # relevant among the first K / K
    recall: dict[int, float]  # relevant among the first K / relevant in the database
    ceiling: dict[int, float]  # `map` of a perfect ranking: min(K, relevant in the database) / K
    chance: dict[int, float]  # the expected `map` of a uniformly random ranking
    # mAP over the whole ranking, divided by the relevant in the database; its expectation over random tie
    # orders, exact: an order by index would need a full sort. None, as the next: not asked for.
    map_whole: float | None = None
    by_radius: ByRadius | None = None  # None, too: of real values

    @property
    def precision_radius_2(self) -> float | None:
        """Precision within Hamming radius 2; None as `by_radius`."""
        return self.by_radius and self.by_radius.precision[:3][-1]


def mean_average_precision(
    query: Tensor,
    database: Tensor,
    query_labels: Tensor,
    database_labels: Tensor,
    ks: Sequence[int],
    exclude_self: bool = False,
) -> dict[int, float]:
    """mAP@K with ties ranked by database index (spec section 8); arguments and errors as in `evaluate`."""
    return evaluate(query, database, query_labels, database_labels, ks, exclude_self, whole=False).map


def tie_averaged_map(
    query: Tensor, database: Tensor, query_labels: Tensor, database_labels: Tensor, ks: Sequence[int]
) -> dict[int, float]:
    """Exact expectation of mAP@K over random tie orders; arguments and errors as in `evaluate`."""
    return evaluate(query, database, query_labels, database_labels, ks, whole=False).tie_averaged_map


def evaluate(
    query: Tensor,
    database: Tensor,
    query_labels: Tensor,
    database_labels: Tensor,
    ks: Sequence[int],
    exclude_self: bool = False,
    whole: bool = True,
    progress: bool = False,
    only: slice = slice(None),
    collect: Callable[[tuple], list[tuple]] = lambda own: [own],
) -> Evaluation:
    """All retrieval metrics from one pass over the Hamming ranking (spec section 8).

    `AP@K = (1/K) sum_{i<=K} rel(i) (sum_{j<=i} rel(j)) / i`, rel = the two videos share a label; means over
    queries, one without any relevant video counting 0. The ranking is that of a stable full sort, but no Q
    x N matrix is built: memory is a block of queries.

    Args:
        query: codes in {-1, 0, +1}, (Q, b), tensor or array; computed on its device.
        database: codes in {-1, 0, +1}, (N, b).
        query_labels: multi-hot, (Q, num_class), any dtype and memory order, also scipy's sparse.
        database_labels: multi-hot, (N, num_class), likewise.
        ks: the cuts K, in any order.
        exclude_self: query i is database video i, which is left out of its own ranking and of all that is
            counted for it. Else a query that is in the database finds itself, as in published practice.
        whole: also what needs more than the first K of a ranking: mAP over all of it, and by radius.
        progress: show a bar.
        only: the queries that this process ranks, where several divide them.
        collect: from what one of them found, what each did, in the order of their queries.

    Returns:
        Every metric at every K.

    Raises:
        ValueError: no query, database video or K; code lengths or class counts differ; label rows unlike
            code rows; codes of bits 0 and 1, labels of anything else; a K not whole or beyond the ranking;
            `exclude_self` with other numbers of queries than of database videos.
    """
    query, database = check_codes(query, database)
    (n_queries, bits), n_videos = query.shape, len(database) - exclude_self
    query_labels, database_labels = _labels(query_labels, database_labels, n_queries, len(database))
    if exclude_self and n_queries != len(database):
        raise ValueError(f"exclude_self: {n_queries} queries cannot be the {len(database)} database videos")
    ks = _cuts(ks, n_videos)
    # Equal label rows are one pattern: relevance is looked up in a (queries, patterns) table.
    patterns, pattern, sizes = _label_patterns(database_labels)
    pattern, sizes = pattern.to(query.device), sizes.to(query.device)
    patterns = patterns.to(query.device, torch.float32)

    tally = Tally(n_queries, n_videos, ks, bits if whole else None)
    marked = relevant_videos(query_labels, database_labels) if whole else None
    blocks = ranked_blocks(query, database, max(ks), exclude_self, marked, only)
    quiet = None if progress else True  # None: quiet where the output is not a terminal
    n_own = len(range(n_queries)[only])
    with tqdm(total=n_own, desc="ranking", unit="query", delay=2, leave=False, disable=quiet) as bar:
        for rows, ranking in blocks:
            table = query_labels[rows].to(query.device, torch.float32) @ patterns.T > 0  # (q, patterns)
            relevant = table.gather(1, pattern[ranking.index])  # (q, K)
            tie_row = ranking.tie_row[table[ranking.tie_row, pattern[ranking.tie_index]]]
            n = ranking.tie_row.bincount(minlength=len(table))
            r = tie_row.bincount(minlength=len(table))
            total = (table * sizes).sum(1)  # (q,)
            if exclude_self:
                total = total - table.gather(1, pattern[rows, None])[:, 0].long()
            tally.add(rows, relevant, ranking.distance, n, r, total)
            if whole:
                tally.add_whole(*ranking.counts.unbind(1))
                tally.add_radii(ranking.counts)
            bar.update(len(table))
    tally.merge(only, collect)
    return tally.means()


class Tally:
    """The metrics of every query, gathered from blocks of ranked ones; whatever they were ranked by.

    Args:
        n_queries: Q.
        n_videos: in every ranking.
        ks: the cuts K.
        bits: b of codes whose radii are to be counted; None: they are not.
    """

    def __init__(self, n_queries: int, n_videos: int, ks: Sequence[int], bits: int | None = None):
        self.n_videos, self.bits = n_videos, bits
        self.ks, self.cuts = list(ks), torch.tensor(ks) - 1  # (number of cuts,)
        # Made beforehand: small results kept from every block would scatter the blocks' memory.
        self.sums, self.tie_ap, self.found = torch.empty(3, n_queries, len(ks), dtype=torch.float64)
        self.total = torch.empty(n_queries, 1, dtype=torch.float64)
        self.whole: list[float] = []  # AP of the queries' whole rankings
        # Sums over queries by radius, of precision and recall, of pairs and relevant ones.
        self.ratios = np.zeros((2, (bits or 0) + 1), np.longdouble)  # the blocks' bounds do not show then
        self.pairs = torch.zeros(2, (bits or 0) + 1, dtype=torch.int64)
        reciprocals = 1 / torch.arange(1, n_videos + 1, dtype=torch.float64)
        self.harmonic = pad(reciprocals.cumsum(0), (1, 0))  # 1 + 1/2 + ... + 1/i at place i

    def add(
        self, rows: slice, relevant: Tensor, distance: Tensor, last_n: Tensor, last_r: Tensor, total: Tensor
    ) -> None:
        """Take over the first K of the ranking of a block of queries.

        Args:
            rows: which queries they are, q of them.
            relevant: in rank order, bool, (q, K).
            distance: in rank order; equal ones tie, (q, K).
            last_n: videos that tie with the K-th, (q,).
            last_r: relevant ones among these, (q,).
            total: relevant videos in the whole ranking, (q,).
        """
        relevant, distance, last_n, last_r = (x.cpu() for x in (relevant, distance, last_n, last_r))
        self.sums[rows] = _precision_sums(relevant)[:, self.cuts]
        self.tie_ap[rows] = _tie_averaged_precision(relevant, distance, last_n, last_r)[:, self.cuts]
        self.found[rows] = relevant.cumsum(1)[:, self.cuts].double()
        self.total[rows] = total[:, None].cpu().double()

    def add_whole(self, n: Tensor, r: Tensor) -> None:
        """Take over the whole ranking of a block of queries, by groups of equal distance, nearest first.

        Args:
            n: videos of a group, also 0, (q, groups).
            r: relevant ones among these, (q, groups).
        """
        self.whole += _whole_precision(n.cpu(), r.cpu(), self.harmonic).tolist()

    def add_radii(self, counts: Tensor) -> None:
        """Take over what lies at which distance, of a block of queries.

        Args:
            counts: of all and of the relevant videos by distance, as in `Ranking`, (q, 2, levels).
        """
        counts = counts.cpu()
        if counts.shape[2] > self.bits + 1:  # half bits: 0 | 1/2, 1 | 3/2, 2 | ...
            counts = pad(counts, (1, 0)).unflatten(2, (-1, 2)).sum(3)
        every, relevant = counts.cumsum(2).double().unbind(1)  # (q, b + 1) within a radius
        precision, recall = relevant / every.clamp(min=1), relevant / relevant[:, -1:].clamp(min=1)
        self.ratios += torch.stack((precision, recall)).numpy().sum(1, dtype=np.longdouble)
        self.pairs += counts.sum(0)

    def merge(self, only: slice, collect: Callable[[tuple], list[tuple]]) -> None:
        """Take over the queries of the other processes; arguments as of `evaluate`."""
        rows = [each[only] for each in (self.sums, self.tie_ap, self.found, self.total)]
        *rows, whole, ratios, pairs = zip(*collect((*rows, self.whole, self.ratios, self.pairs)), strict=True)
        self.sums, self.tie_ap, self.found, self.total = map(torch.cat, rows)
        self.whole, self.ratios, self.pairs = sum(whole, []), sum(ratios), sum(pairs)

    def means(self) -> Evaluation:
        """Means over all queries."""
        n_queries, k = len(self.total), torch.tensor(self.ks).double()
        perfect = self.total.minimum(k)  # (Q, cuts) relevant among the first K of a perfect ranking
        values = (*(self.ratios / n_queries).astype(float).tolist(), *self.pairs.tolist())
        return Evaluation(
            map=_mean(self.ks, self.sums / k),
            tie_averaged_map=_mean(self.ks, self.tie_ap),
            map_relevant=_mean(self.ks, self.sums / perfect.clamp(min=1)),
            map_retrieved=_mean(self.ks, self.sums / self.found.clamp(min=1)),
            precision=_mean(self.ks, self.found / k),
            recall=_mean(self.ks, self.found / self.total.clamp(min=1)),
            ceiling=_mean(self.ks, perfect / k),
            chance=_mean(self.ks, _chance(self.total, self.n_videos, k, self.harmonic[k.long()])),
            map_whole=math.fsum(self.whole) / n_queries if self.whole else None,
            by_radius=ByRadius(*values) if self.bits else None,
        )


def _precision_sums(relevant: Tensor) -> Tensor:
    """K AP@K at every cut 1..K, (q, K), from the relevance in rank order (q, K)."""
    position = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float64)
    return (relevant * relevant.cumsum(1) / position).cumsum(1)


def _whole_precision(n: Tensor, r: Tensor, harmonic: Tensor) -> Tensor:
    """Expected AP of the whole ranking over random orders of equal distances, (q,); divided by the relevant.

    The terms of `_tie_averaged_precision`, summed over a group that begins behind s videos, with `H` the
    harmonic numbers and `t = (r-1)/(n-1)`: `(r/n) ((R + 1 - t (s+1)) (H[s+n] - H[s]) + t n)`.
    """
    ends, found = n.cumsum(1), r.cumsum(1)  # (q, groups)
    s, before = ends - n, found - r
    t = (r - 1) / (n - 1).clamp(min=1).double()
    terms = (before + 1 - t * (s + 1)) * (harmonic[ends] - harmonic[s]) + t * n
    return (r / n.clamp(min=1).double() * terms).sum(1) / r.sum(1).clamp(min=1)


def _tie_averaged_precision(relevant: Tensor, distance: Tensor, last_n: Tensor, last_r: Tensor) -> Tensor:
    """Expected AP at every cut 1..K over random orders of equal distances, (q, K).

    A tie group holds n videos, r of them relevant, with R relevant ones before it. Its j-th place, at rank i,
    contributes `(r/n) (R + 1 + (j-1)(r-1)/(n-1)) / i`. The ranks end within a group that may go on beyond
    them: `last_n` and `last_r` (q,) are that group's whole n and r.
    """
    rank = torch.arange(1, relevant.shape[1] + 1)
    opens = torch.ones_like(relevant)  # True where a group begins
    opens[:, 1:] = distance[:, 1:] != distance[:, :-1]
    group = opens.cumsum(1) - 1  # (q, K)
    n = torch.zeros_like(group).scatter_add_(1, group, torch.ones_like(group))
    r = torch.zeros_like(group).scatter_add_(1, group, relevant.long())
    before = r.cumsum(1) - r
    last = group[:, -1:]
    n.scatter_(1, last, last_n[:, None])
    r.scatter_(1, last, last_r[:, None])
    n, r, before = n.gather(1, group), r.gather(1, group), before.gather(1, group)
    j = rank - (rank * opens).cummax(1).values  # place within the group, from 0
    others = j.double() * (r - 1) / (n - 1).clamp(min=1)  # relevant ones expected before
    term = r.double() / n * (before + 1 + others) / rank
    return term.cumsum(1) / rank


def _chance(total: Tensor, n: int, k: Tensor, harmonic: Tensor) -> Tensor:
    """Expected AP@K of a random ranking, (Q, cuts): one tie group of n videos, `total` (Q, 1) relevant."""
    return total / n * (harmonic + (total - 1) / max(n - 1, 1) * (k - harmonic)) / k


def _mean(ks: list[int], values: Tensor) -> dict[int, float]:
    """Mean over queries, (Q, cuts); fsum rounds once, so the order of the queries does not matter."""
    return {k: math.fsum(column.tolist()) / len(column) for k, column in zip(ks, values.T, strict=True)}


# ------------------------------------------------------------------------------------------ arguments


def _labels(query: Tensor, database: Tensor, n_query: int, n_database: int) -> tuple[Tensor, Tensor]:
    """Check labels; return them as bool."""
    query, database = as_tensor(query), as_tensor(database)
    for name, labels, rows in (("query", query, n_query), ("database", database, n_database)):
        if labels.ndim != 2 or len(labels) != rows:
            raise ValueError(f"{name} labels: expected ({rows}, num_class), found {tuple(labels.shape)}")
        other = () if labels.dtype == torch.bool else labels[(labels != 0) & (labels != 1)]
        if len(other):
            cure = "pass labels > 0 for -1 and +1, np.eye(num_class)[labels] for class indices"
            raise ValueError(f"{name} labels: expected multi-hot 0 and 1, found {other[0].item()}: {cure}")
    if query.shape[1] != database.shape[1]:
        raise ValueError(f"class counts differ: query has {query.shape[1]}, database {database.shape[1]}")
    return query.bool(), database.bool()


def _cuts(ks: Sequence[int], n: int) -> list[int]:
    ks = list(ks)
    if not ks:
        raise ValueError("no K to evaluate at")
    if any(k not in range(1, n + 1) for k in ks):  # 5.7 is in no range, 5.0 is
        raise ValueError(f"K must be whole numbers between 1 and the database size {n}, found {ks}")
    return [int(k) for k in ks]


def _label_patterns(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct label rows (P, num_class), which one each row is (N,), and how many rows are it (P,)."""
    packed = np.packbits(labels.cpu().numpy(), axis=1)  # (N, bytes)
    keys = packed.view(f"V{packed.shape[1]}")[:, 0]
    _, first, pattern, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return labels[torch.from_numpy(first)], torch.from_numpy(pattern), torch.from_numpy(sizes)
