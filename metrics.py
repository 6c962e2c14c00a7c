"""Hash codes and their Hamming ranking: pure functions on codes and labels.

Both systems make their codes with `binarize` and are measured with `evaluate`; nothing here knows of either.

Axes: Q queries, N database videos, b bits, K the cut of mAP@K, q queries of one block.

Codes hold -1, 0 or +1. For query q and video d the Hamming distance is (b - q·d) / 2, so ranking by
distance is ranking by the integer score q·d, largest first, and one matrix product gives a block of it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

GROUP = 32  # neighbouring videos whose best score stands for them at first
SCORES = 2**23  # scores in a block: queries times database videos
SCORES_GPU = 2**27
QUERIES = 32  # in a block at least, however large the database
COLUMNS = 8192  # database videos in one matrix product
OPENED = 2**18  # scores of opened groups to work on at once


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


def pack(codes: np.ndarray | Tensor) -> np.ndarray:
    """Codes as bits, the form in which search engines take them; 0 counts as +1.

    Args:
        codes: in {-1, 0, +1}, (N, b).

    Returns:
        uint8, (N, ceil(b / 8)): the first bit is a byte's highest, missing bits at the end are 0.

    Raises:
        ValueError: other values (bits 0 and 1 are no codes) or another shape.
    """
    (codes,) = _codes(codes)
    return np.packbits(codes.cpu().numpy() >= 0, axis=1)


def unpack(packed: np.ndarray, n_bits: int) -> np.ndarray:
    """The inverse of `pack`: uint8 (N, ceil(b / 8)) to codes int8 (N, b) in {-1, +1}.

    Raises:
        ValueError: not bytes of ``n_bits`` bits.
    """
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != -(-n_bits // 8):
        expected, found = f"uint8 (N, {-(-n_bits // 8)})", f"{packed.dtype} {packed.shape}"
        raise ValueError(f"packed codes of {n_bits} bits: expected {expected}, found {found}")
    return 2 * np.unpackbits(packed, axis=1, count=n_bits).astype(np.int8) - 1


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
    query, database = _codes(query, database)
    return (query.float() @ database.float().T).mul_(-0.5).add_(query.shape[1] / 2)  # in place: it is large


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
            code rows; codes of bits 0 and 1, labels of anything else; a K that is not whole, below 1 or
            beyond the database.
    """
    query, database = _codes(query, database)
    query_labels, database_labels = _labels(query_labels, database_labels, len(query), len(database))
    ks = _cuts(ks, len(database))
    cuts = torch.tensor(ks) - 1  # (number of cuts,)
    depth = max(ks)
    # Equal label rows are one pattern: relevance is looked up in a (queries, patterns) table.
    patterns, pattern, sizes = _label_patterns(database_labels)
    pattern, sizes = pattern.to(query.device), sizes.to(query.device)
    patterns = patterns.to(query.device, torch.float32)

    # Made beforehand: small results kept from every block would scatter the blocks' memory.
    ap, tie_ap, found = torch.empty(3, len(query), len(ks), dtype=torch.float64)  # (Q, cuts) each
    total = torch.empty(len(query), 1, dtype=torch.float64)
    quiet = None if progress else True  # None: quiet where the output is not a terminal
    with tqdm(total=len(query), desc="ranking", unit="query", delay=2, leave=False, disable=quiet) as bar:
        for rows, ranking in _ranked_blocks(query, database, depth):
            table = query_labels[rows].to(query.device, torch.float32) @ patterns.T > 0  # (q, patterns)
            relevant = table.gather(1, pattern[ranking.index]).cpu()  # (q, K)
            tie_row = ranking.tie_row[table[ranking.tie_row, pattern[ranking.tie_index]]]
            n = ranking.tie_row.bincount(minlength=len(table)).cpu()
            r = tie_row.bincount(minlength=len(table)).cpu()
            score = ranking.score.cpu()
            ap[rows] = _average_precision(relevant)[:, cuts]
            tie_ap[rows] = _tie_averaged_precision(relevant, score, n, r)[:, cuts]
            found[rows] = relevant.cumsum(1)[:, cuts].double()
            total[rows] = (table * sizes).sum(1, keepdim=True).cpu().double()
            bar.update(len(table))
    k = torch.tensor(ks).double()
    return Evaluation(
        map=_mean(ks, ap),
        tie_averaged_map=_mean(ks, tie_ap),
        precision=_mean(ks, found / k),
        recall=_mean(ks, found / total.clamp(min=1)),
        chance=_mean(ks, _chance(total, len(database), k)),
    )


def _average_precision(relevant: Tensor) -> Tensor:
    """AP at every cut 1..K, (q, K), from the relevance in rank order (q, K)."""
    position = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float64)
    return (relevant * relevant.cumsum(1) / position).cumsum(1) / position


def _tie_averaged_precision(relevant: Tensor, score: Tensor, last_n: Tensor, last_r: Tensor) -> Tensor:
    """Expected AP at every cut 1..K over random orders of equal scores, (q, K).

    A tie group holds n videos, r of them relevant, with R relevant ones before it. Its j-th place, at rank i,
    contributes `(r/n) (R + 1 + (j-1)(r-1)/(n-1)) / i`. The ranks end within a group that may go on beyond
    them: `last_n` and `last_r` (q,) are that group's whole n and r.
    """
    rank = torch.arange(1, relevant.shape[1] + 1)
    opens = torch.ones_like(relevant)  # True where a group begins
    opens[:, 1:] = score[:, 1:] != score[:, :-1]
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


# ------------------------------------------------------------------------------------------------- ranking


class _Ranking(NamedTuple):
    """The first K of the ranking of q queries, and the whole tie group that the cut goes through."""

    index: Tensor  # (q, K) database indices, nearest first
    score: Tensor  # (q, K) their q·d
    tie_row: Tensor  # (T,) query of every video that ties with the K-th
    tie_index: Tensor  # (T,) its database index


def _ranked_blocks(query: Tensor, database: Tensor, depth: int) -> Iterator[tuple[slice, _Ranking]]:
    """Yield slices of queries and their rankings down to `depth`.

    Per block of queries: all scores, a part of the database at a time; the best score of every group of
    `GROUP` videos; the depth-th largest of those, a floor that at least `depth` videos reach. Only the few
    groups that reach it are looked into.
    """
    n, bits = database.shape
    groups = -(-n // GROUP)
    size = max(QUERIES, (SCORES if query.device.type == "cpu" else SCORES_GPU) // n)
    size = min(size, len(query))
    exact = _product_type(query.device, bits)
    database = database.to(exact)
    buffer = torch.full((size, groups * GROUP), -torch.inf, device=query.device)  # the last columns keep -inf
    for start in range(0, len(query), size):
        block = query[start : start + size].to(exact)  # (q, b)
        scores = buffer[: len(block)]  # (q, groups * GROUP)
        for column in range(0, n, COLUMNS):
            part = database[column : column + COLUMNS]
            scores[:, column : column + len(part)] = block @ part.T
        best = scores.view(len(block), groups, GROUP).amax(2)  # (q, groups)
        if groups > depth:
            floor = best.topk(depth, sorted=False).values.amin(1, keepdim=True)  # (q, 1)
        else:
            floor = best.new_full((len(block), 1), -bits)
        open_groups = best >= floor  # (q, groups)
        # Where many videos tie, many groups open: then a few queries at a time, to bound memory.
        load = open_groups.sum(1).cumsum(0) * GROUP // OPENED
        sizes = load.unique_consecutive(return_counts=True)[1].tolist()
        first = start
        for parts in zip(scores.split(sizes), open_groups.split(sizes), floor.split(sizes), strict=True):
            yield slice(first, first + len(parts[0])), _rank(*parts, depth)
            first += len(parts[0])


def _rank(scores: Tensor, open_groups: Tensor, floor: Tensor, depth: int) -> _Ranking:
    """Rank the videos in open groups (q, groups) whose scores (q, groups * GROUP) reach the floor (q, 1)."""
    opened = open_groups.flatten().nonzero()[:, 0]
    near = scores.reshape(-1, GROUP).index_select(0, opened)  # (opened, GROUP)
    reaches = near >= floor[opened // open_groups.shape[1]]
    found = reaches.flatten().nonzero()[:, 0]  # (C,) candidates, by query, then by database index
    score = near.flatten()[found].long()
    place = opened[found // GROUP] * GROUP + found % GROUP  # in scores, flattened
    row, index = place // scores.shape[1], place % scores.shape[1]

    # One row of keys per query: larger for a higher score, among equals for a lower index.
    counts = row.bincount(minlength=len(scores))
    first, longest = counts.cumsum(0) - counts, int(counts.max())
    turn = torch.arange(len(row), device=row.device) - first[row]
    keys = score.new_full((len(scores), longest), torch.iinfo(torch.int64).min)
    keys[row, turn] = score * longest - turn
    top = first[:, None] + keys.topk(depth).indices  # (q, K) in the candidates
    tied = score == score[top[:, -1]][row]
    return _Ranking(index[top], score[top], row[tied], index[tied])


def _product_type(device: torch.device, bits: int) -> torch.dtype:
    """The fastest type that holds every score exactly: all are integers of size up to `bits`."""
    if device.type == "cuda" and bits <= 2048:
        return torch.float16
    if device.type == "cpu" and bits <= 256 and torch.cpu.get_capabilities().get("avx512_bf16"):
        return torch.bfloat16  # three times as fast as float32 there; slower where it is emulated
    return torch.float32


# ------------------------------------------------------------------------------------------ arguments


def _tensor(x: Tensor | np.ndarray) -> Tensor:
    """What `loadmat` hands out, any memory or byte order and sparse, as a contiguous tensor."""
    if hasattr(x, "toarray"):
        x = x.toarray()
    if isinstance(x, np.ndarray):
        x = np.require(x, x.dtype.newbyteorder("="), ["C", "W"])  # torch takes native, writable numbers
    return torch.as_tensor(x).contiguous()


def _codes(*codes: Tensor) -> list[Tensor]:
    """Check codes, of the query first; return them on its device."""
    codes = [_tensor(each) for each in codes]
    for name, each in zip(("query", "database") if len(codes) == 2 else ("video",), codes, strict=True):
        if each.ndim != 2 or each.numel() == 0:
            raise ValueError(f"{name} codes: expected a non-empty (videos, bits), found {tuple(each.shape)}")
        if not all(torch.equal(part, part.sign()) for part in each.split(COLUMNS)):
            raise ValueError(f"{name} codes: expected -1, 0 and +1 only")
    # A 0 is a tie, and rare: without any -1 beside it, it is a bit.
    if min(each.min() for each in codes) == 0 or any(each.dtype == torch.bool for each in codes):
        raise ValueError("codes look like bits 0 and 1: pass 2 * bits - 1, bits of a signed type")
    n_bits = [each.shape[1] for each in codes]
    if min(n_bits) != max(n_bits):
        raise ValueError(
            f"code lengths differ: query codes have {n_bits[0]} bits, database codes {n_bits[1]}"
        )
    return [each.to(codes[0].device) for each in codes]


def _labels(query: Tensor, database: Tensor, n_query: int, n_database: int) -> tuple[Tensor, Tensor]:
    """Check labels; return them as bool."""
    query, database = _tensor(query), _tensor(database)
    for name, labels, rows in (("query", query, n_query), ("database", database, n_database)):
        if labels.ndim != 2 or len(labels) != rows:
            raise ValueError(f"{name} labels: expected ({rows}, num_class), found {tuple(labels.shape)}")
        other = labels[(labels != 0) & (labels != 1)]
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
