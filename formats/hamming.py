"""The Hamming ranking of packed codes, a block of queries at a time; no Q x N matrix is built.

Axes: Q queries, N database videos, b bits, K the depth of a ranking, q queries of one block.

Codes hold -1, 0 or +1. For query q and video d the Hamming distance is (b - q·d) / 2: a GPU ranks by matrix
products, a CPU counts the bits of packed words (bfloat16 products take about as long and twice the memory).
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from formats.bits import words

GROUP = 16  # videos of which the nearest stands for them at first
DISTANCES, DISTANCES_GPU = 2**23, 2**27  # in a block: queries times database videos
QUERIES, MOST_QUERIES = 8, 2048  # in a block at least, however large the database, and at most
TILE = 8, 8192  # queries and database videos whose words stay in a core's cache
CANDIDATES = 2**18  # to rank at once
INDEX_BITS, DISTANCE_BITS = 32, 20  # of a candidate's key; its query has the rest


class Ranking(NamedTuple):
    """The first K of the ranking of q queries, and the whole tie group that the cut goes through."""

    index: Tensor  # (q, K) database indices, nearest first
    distance: Tensor  # (q, K) theirs, from a zero of each query's own
    tie_row: Tensor  # (T,) query of every video that ties with the K-th
    tie_index: Tensor  # (T,) its database index
    # (q, 2, levels) how many videos, and how many of those that `marked` names, there are at every distance:
    # levels are whole bits, b + 1 of them, or where codes may have zeros half bits, 2b + 1.
    counts: Tensor | None


def ranked_blocks(
    query: Tensor,
    database: Tensor,
    depth: int,
    exclude_self: bool = False,
    marked: Callable[[int], np.ndarray] | None = None,
    only: slice = slice(None),
) -> Iterator[tuple[slice, Ranking]]:
    """Yield slices of queries and their rankings down to `depth`.

    Per block of queries: all distances; the least of every group of videos; the depth-th smallest of those,
    a reach that at least `depth` videos are within (where distances are counted, the counts tell the least
    such). Only these candidates are sorted, by one key each: its query in the block, its distance, its index.

    Args:
        query: codes, (Q, b).
        database: codes, (N, b), on the same device.
        depth: K; with `exclude_self` at most N - 1.
        exclude_self: query i is database video i, and no part of its own ranking.
        marked: from a query's number, the database videos to count apart; None: nothing is counted.
        only: the queries to rank.
    """
    (n, bits), cpu = database.shape, query.device.type == "cpu"
    size = min(max(QUERIES, (DISTANCES if cpu else DISTANCES_GPU) // n), MOST_QUERIES)
    numbers = range(len(query))[only]
    starts = numbers[::size]
    if cpu:
        search, (query, database) = _packed_search, words(query, database)
    else:
        exact = torch.float16 if query.device.type == "cuda" and bits < 1024 else torch.float32
        search, query, database = _product_search, -query.to(exact).T, database.to(exact).T
    search = partial(search, bits=bits, depth=depth, exclude_self=exclude_self, marked=marked)
    query = query[..., : numbers.stop]
    blocks = [partial(search, query[..., start : start + size], database, start) for start in starts]
    found = _threaded(blocks) if cpu else (block() for block in blocks)
    for start, (keys, counts) in zip(starts, found, strict=True):
        candidates = (keys >> DISTANCE_BITS + INDEX_BITS).bincount()  # (q,)
        # Where many videos tie, many are candidates: then a few queries at a time, to bound memory.
        sizes = (candidates.cumsum(0) // CANDIDATES).unique_consecutive(return_counts=True)[1].tolist()
        counts = [None] * len(sizes) if counts is None else counts.split(sizes)
        for part, count in zip(candidates.split(sizes), counts, strict=True):
            near, keys = keys.tensor_split([int(part.sum())])
            level, index = near >> INDEX_BITS, near & (1 << INDEX_BITS) - 1  # level: query and distance
            row = torch.arange(len(part), device=part.device).repeat_interleave(part)  # (C,)
            top = (part.cumsum(0) - part)[:, None] + torch.arange(depth, device=part.device)  # (q, K)
            tied = level == level[top[:, -1]][row]
            ranking = Ranking(index[top], level[top], row[tied], index[tied], count)
            yield slice(start, start + len(part)), ranking
            start += len(part)


def relevant_videos(query: Tensor, database: Tensor) -> Callable[[int], np.ndarray]:
    """From a query's number, the database videos that share a label with it; of multi-hot bool labels.

    It is what `ranked_blocks` takes as `marked`.
    """
    query, database = query.cpu().numpy(), database.cpu().numpy()
    members = [np.flatnonzero(column) for column in database.T]
    n_classes, first = query.sum(1).tolist(), query.argmax(1).tolist()

    def find(number: int) -> np.ndarray:
        if n_classes[number] == 1:
            return members[first[number]]
        shares = np.zeros(len(database), bool)
        for each in np.flatnonzero(query[number]):
            shares[members[each]] = True
        return np.flatnonzero(shares)

    return find


def _threaded(blocks: list[Callable[[], tuple]]) -> Iterator[tuple]:
    """Call every block in a thread of its own, a few of them ahead."""
    threads, waiting = torch.get_num_threads(), deque()
    # torch would split a block's work again, among threads of each thread's own.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for block in blocks:
            waiting.append(pool.submit(block))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        yield from (block.result() for block in waiting)


def _product_search(
    query: Tensor,
    database: Tensor,
    first: int,
    bits: int,
    depth: int,
    exclude_self: bool = False,
    marked: Callable[[int], np.ndarray] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Sorted keys of the candidates of negated queries (b, q) among videos (b, N), by a matrix product.

    The first of these queries has the number `first`. Also gives the counts of a `Ranking`, if any are asked.
    """
    distance = (query.T @ database).add_(bits)  # (q, N), from 0 to 2b: half bits
    beyond, (q, n) = 2 * bits + 1, distance.shape
    rows = torch.arange(q, device=distance.device)
    if exclude_self:
        distance[rows, first + rows] = beyond
    if marked:
        every = torch.stack([(distance == level).sum(1) for level in range(beyond)], 1)  # (q, levels)
        videos = [torch.from_numpy(marked(first + row)) for row in range(q)]
        row = rows.repeat_interleave(torch.tensor([len(each) for each in videos], device=rows.device))
        place = row * (beyond + 1) + distance[row, torch.cat(videos).to(rows.device)].long()
        some = place.bincount(minlength=q * (beyond + 1)).view(q, -1)[:, :beyond]
        counts, reach = torch.stack((every, some), 1), _reach(every, depth)
    else:
        counts, group = None, min(GROUP, n // depth)  # so there are at least `depth` groups
        # Strided groups: minima run along whole rows.
        least = distance[:, : n // group * group].unflatten(1, (group, -1)).amin(1)  # (q, groups)
        reach = least.topk(depth, largest=False, sorted=False).values.amax(1, keepdim=True)  # (q, 1)
    row, index = (distance <= reach).nonzero(as_tuple=True)  # (C,)
    level = (row << DISTANCE_BITS) + distance[row, index].long()
    return ((level << INDEX_BITS) + index).sort().values, counts


def _packed_search(
    query: np.ndarray,
    database: np.ndarray,
    first: int,
    bits: int,
    depth: int,
    exclude_self: bool = False,
    marked: Callable[[int], np.ndarray] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As `_product_search`, of words (words, planes, q) and (words, planes, N), by counting bits."""
    (_, planes, n), keys, counts = database.shape, [], []
    group, beyond = min(GROUP, n // depth), bits * planes + 1
    for start in range(0, query.shape[2], 2 * TILE[0]):
        distance = _distances(query[..., start : start + 2 * TILE[0]], database, bits)  # (q, N)
        rows = np.arange(len(distance))
        if exclude_self:
            distance[rows, first + start + rows] = beyond
        if marked:  # while the caches hold the distances; torch counts bytes as they are, numpy copies them
            every = [row.bincount(minlength=beyond + 1) for row in torch.from_numpy(distance)]
            videos = [marked(first + start + row) for row in range(len(rows))]
            row = rows.repeat([len(each) for each in videos])
            place = row * (beyond + 1) + distance.ravel()[row * n + np.concatenate(videos)]
            some = np.bincount(place, minlength=len(rows) * (beyond + 1)).reshape(len(rows), -1)
            counts.append(torch.stack((torch.stack(every), torch.from_numpy(some)), 1))
            reach = _reach(counts[-1][:, 0], depth).numpy()
        else:
            least = distance[:, : n // group * group].reshape(len(distance), group, -1).min(1)  # (q, groups)
            # 32 bits: numpy's partition of bytes is slow.
            reach = np.partition(least.astype(np.int32), depth - 1, axis=1)[:, depth - 1, None]  # (q, 1)
        place = np.flatnonzero(distance <= reach.astype(distance.dtype))  # (C,)
        row, index = np.divmod(place, n)
        level = (start + row << DISTANCE_BITS) + distance.ravel()[place]
        keys.append(np.sort((level << INDEX_BITS) + index))
    return torch.from_numpy(np.concatenate(keys)), torch.cat(counts)[..., :beyond] if marked else None


def _reach(counts: Tensor, depth: int) -> Tensor:
    """The least distance that at least `depth` videos are within, (q, 1), of their numbers (q, levels)."""
    return (counts.cumsum(1) < depth).sum(1, keepdim=True)


def _distances(query: np.ndarray, database: np.ndarray, bits: int) -> np.ndarray:
    """Distances (q, N) of words (words, planes, q) and (words, planes, N).

    Two codes differ where `(sign ^ sign) & known`. Of one plane, without zeros, the number of these bits is
    the distance; of two it counts half bits, b + |differ| - |agree|.
    """
    (_, planes, q), n = query.shape, database.shape[2]
    small = bits * planes < 255  # so a byte has room for one distance beyond all
    out = np.full((q, n), bits * (planes - 1), np.uint8 if small else np.int32)
    whole = np.empty((2, *TILE), np.uint64), np.empty(TILE, np.uint8)  # reused: the caches keep them
    for row, column in itertools.product(range(0, q, TILE[0]), range(0, n, TILE[1])):
        rows, columns = slice(row, row + TILE[0]), slice(column, column + TILE[1])
        part = out[rows, columns]
        (differ, known), count = (each[..., : part.shape[0], : part.shape[1]] for each in whole)
        for q_word, d_word in zip(query[..., rows, None], database[..., None, columns], strict=True):
            np.bitwise_xor(q_word[0], d_word[0], out=differ)
            if planes == 2:
                differ &= np.bitwise_and(q_word[1], d_word[1], out=known)
                part -= np.bitwise_count(np.bitwise_xor(differ, known, out=known), out=count)
            part += np.bitwise_count(differ, out=count)
    return out
