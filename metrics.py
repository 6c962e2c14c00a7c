"""Hash codes and their Hamming ranking: pure functions on codes and labels.

Both systems make their codes with `binarize` and are measured with `evaluate`; nothing here knows of either.

Axes: Q queries, N database videos, b bits, K the cut of mAP@K, q queries of one block.

Codes hold -1, 0 or +1. For query q and video d the Hamming distance is (b - q·d) / 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from formats.bits import as_tensor, check_codes
from formats.hamming import ranked_blocks

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
class Evaluation:
    """Means over all queries, each as {K: value}."""

    map: dict[int, float]  # mAP@K, ties ranked by database index
    tie_averaged_map: dict[int, float]  # its expectation over random tie orders
    precision: dict[int, float]  # relevant among the first K / K
    recall: dict[int, float]  # relevant among the first K / relevant in the database
    chance: dict[int, float]  # the expected mAP@K of a uniformly random ranking


def mean_average_precision(
    query: Tensor, database: Tensor, query_labels: Tensor, database_labels: Tensor, ks: Sequence[int]
) -> dict[int, float]:
    """mAP@K with ties ranked by database index (spec section 8); arguments and errors as in `evaluate`."""
    return evaluate(query, database, query_labels, database_labels, ks).map


def tie_averaged_map(
    query: Tensor, database: Tensor, query_labels: Tensor, database_labels: Tensor, ks: Sequence[int]
) -> dict[int, float]:
    """Exact expectation of mAP@K over random tie orders; arguments and errors as in `evaluate`."""
    return evaluate(query, database, query_labels, database_labels, ks).tie_averaged_map


def evaluate(
    query: Tensor,
    database: Tensor,
    query_labels: Tensor,
    database_labels: Tensor,
    ks: Sequence[int],
    progress: bool = False,
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
        progress: show a bar.

    Returns:
        Every metric at every K.

    Raises:
        ValueError: no query, database video or K; code lengths or class counts differ; label rows unlike
            code rows; codes of bits 0 and 1, labels of anything else; a K not whole or beyond the database.
    """
    query, database = check_codes(query, database)
    query_labels, database_labels = _labels(query_labels, database_labels, len(query), len(database))
    ks = _cuts(ks, len(database))
    depth = max(ks)
    # Equal label rows are one pattern: relevance is looked up in a (queries, patterns) table.
    patterns, pattern, sizes = _label_patterns(database_labels)
    pattern, sizes = pattern.to(query.device), sizes.to(query.device)
    patterns = patterns.to(query.device, torch.float32)

    tally = Tally(len(query), ks)
    quiet = None if progress else True  # None: quiet where the output is not a terminal
    with tqdm(total=len(query), desc="ranking", unit="query", delay=2, leave=False, disable=quiet) as bar:
        for rows, ranking in ranked_blocks(query, database, depth):
            table = query_labels[rows].to(query.device, torch.float32) @ patterns.T > 0  # (q, patterns)
            relevant = table.gather(1, pattern[ranking.index])  # (q, K)
            tie_row = ranking.tie_row[table[ranking.tie_row, pattern[ranking.tie_index]]]
            n = ranking.tie_row.bincount(minlength=len(table))
            r = tie_row.bincount(minlength=len(table))
            tally.add(rows, relevant, ranking.distance, n, r, (table * sizes).sum(1))
            bar.update(len(table))
    return tally.means(len(database))


class Tally:
    """The metrics of every query, gathered from blocks of ranked ones; whatever they were ranked by.

    Args:
        n_queries: Q.
        ks: the cuts K.
    """

    def __init__(self, n_queries: int, ks: Sequence[int]):
        self.ks, self.cuts = list(ks), torch.tensor(ks) - 1  # (number of cuts,)
        # Made beforehand: small results kept from every block would scatter the blocks' memory.
        self.ap, self.tie_ap, self.found = torch.empty(3, n_queries, len(ks), dtype=torch.float64)
        self.total = torch.empty(n_queries, 1, dtype=torch.float64)

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
            total: relevant videos in the database, (q,).
        """
        relevant, distance, last_n, last_r = (x.cpu() for x in (relevant, distance, last_n, last_r))
        self.ap[rows] = _average_precision(relevant)[:, self.cuts]
        self.tie_ap[rows] = _tie_averaged_precision(relevant, distance, last_n, last_r)[:, self.cuts]
        self.found[rows] = relevant.cumsum(1)[:, self.cuts].double()
        self.total[rows] = total[:, None].cpu().double()

    def means(self, n_videos: int) -> Evaluation:
        """Means over all queries, of a database of so many videos."""
        k = torch.tensor(self.ks).double()
        return Evaluation(
            map=_mean(self.ks, self.ap),
            tie_averaged_map=_mean(self.ks, self.tie_ap),
            precision=_mean(self.ks, self.found / k),
            recall=_mean(self.ks, self.found / self.total.clamp(min=1)),
            chance=_mean(self.ks, _chance(self.total, n_videos, k)),
        )


def _average_precision(relevant: Tensor) -> Tensor:
    """AP at every cut 1..K, (q, K), from the relevance in rank order (q, K)."""
    position = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float64)
    return (relevant * relevant.cumsum(1) / position).cumsum(1) / position


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


def _chance(total: Tensor, n: int, k: Tensor) -> Tensor:
    """Expected AP@K of a random ranking, (Q, cuts): one tie group of n videos, `total` (Q, 1) relevant."""
    harmonic = (1 / torch.arange(1, int(k.max()) + 1, dtype=torch.float64)).cumsum(0)[k.long() - 1]
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
