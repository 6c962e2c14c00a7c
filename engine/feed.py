"""Feeding a network: the training set, batches read ahead of the computing, codes of a whole split.

A batch is a tuple of tensors. They go to the device, frames as float32; masks (boolean) stay where they are,
because their values decide shapes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from data import FeatureStore, draw_views, open_store
from engine import ranks
from engine.device import check_stop
from engine.settings import Settings
from formats.dataset import DatasetConfig
from formats.files import BadInput, expand, progress

Batch = tuple[Tensor, ...]
Fetch = Callable[[slice], Batch]  # the batch that stands at these places in the order of a pass


def open_training_set(settings: Settings, device: torch.device) -> FeatureStore:
    """The training videos; a packed file that stays on disk is unpacked once, beside the checkpoints."""
    config = settings.config
    scratch = expand(settings.result_weight_dir) / "unpacked"
    ranks.wait()  # all look for free memory before one of them takes some
    return open_store(config, config.train, settings.memory, device, scratch)


def masked(store: FeatureStore, mask_ratio: float) -> Callable[[np.random.Generator], Fetch]:
    """A pass over a store whose batches are frames (B, L, D) and the masks of both views (2B, L)."""

    def draw(rng: np.random.Generator) -> Fetch:
        order, masks = draw_views(rng, len(store), store.shape[1], mask_ratio)

        def fetch(places: slice) -> Batch:
            rows = order[places]
            return store.read(rows), masks[:, rows].flatten(0, 1)

        return fetch

    return draw


def memory_of_parts(settings: Settings) -> str:
    """Where to read videos from of which every rank reads a part: in memory, each would have them all."""
    return settings.memory if ranks.n_ranks() == 1 else "disk"


def count_training_videos(config: DatasetConfig) -> int:
    """How many there are, their files opened but not read."""
    return len(open_store(config, config.train, "disk", "cpu"))


def read_ahead(
    fetch: Fetch, slices: Iterable[slice], n_workers: int, device: torch.device
) -> Iterator[Batch]:
    """Fetch batches in order, the next ones in background threads while this one is computed on.

    Args:
        fetch: reads one batch.
        slices: places of each batch.
        n_workers: threads; 0 fetches in line.
        device: on CUDA batches are pinned, so that copying them can overlap computing.
    """

    def get(places: slice) -> Batch:
        batch = fetch(places)
        if device.type != "cuda":
            return batch
        return tuple(tensor if tensor.is_cuda else tensor.pin_memory() for tensor in batch)

    if n_workers == 0:
        yield from map(get, slices)
        return
    with ThreadPoolExecutor(n_workers) as pool:
        waiting: deque = deque()
        try:
            for places in slices:
                waiting.append(pool.submit(get, places))
                if len(waiting) > n_workers + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A part of a batch on the device; frames as float32, masks where they are.

    Only a copy from pinned memory to CUDA may be under way when this returns: any other could read what has
    been freed since.
    """
    if tensor.dtype == torch.bool:
        return tensor
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()  # of a batch read ahead, it is
    tensor = tensor.to(device, non_blocking=device.type == "cuda")
    return tensor.float() if tensor.is_floating_point() else tensor


def encode(
    store: FeatureStore,
    function: Callable[[Tensor, slice], Tensor],
    device: torch.device,
    settings: Settings,
    description: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What a function gives for all videos, (N, ...) on the CPU; the rest as in ``encode_blocks``."""
    return torch.cat(list(encode_blocks(store, function, device, settings, description, dtype=dtype)))


def encode_blocks(
    store: FeatureStore,
    function: Callable[[Tensor, slice], Tensor],
    device: torch.device,
    settings: Settings,
    description: str,
    first: int = 0,
    dtype: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """Apply a function to all videos in file order, in large batches, without gradient.

    Ranks take the batches in turn and exchange what they found: all of them yield all, and whole batches are
    the same, to the bit, for any number of ranks.

    Args:
        store: the videos.
        function: from frames (B, L, D) on the device and their rows to a tensor whose rows are the videos.
        device: where to compute.
        settings: of the run.
        description: of what is computed, for the progress bar and errors.
        first: video to begin with, a multiple of ``block_size``: the batches are then the same as from 0.
        dtype: of what is yielded; None: as the function gives it.

    Yields:
        The rows of a batch on the CPU, (B, ...).

    Raises:
        BadInput: what the function gives for a video is not finite.
    """
    size = block_size(device, settings)
    slices = [slice(start, min(start + size, len(store))) for start in range(0, len(store), size)]
    slices = slices[first // size :]
    n = ranks.n_ranks()
    turns = [slices[start : start + n] for start in range(0, len(slices), n)]
    own = [turn[min(ranks.rank(), len(turn) - 1)] for turn in turns]  # none left: the last one again
    workers = 0 if store.is_at_hand(device) else settings.num_workers

    def fetch(rows: slice) -> Batch:
        return (store.read(np.arange(rows.start, rows.stop)),)

    batches = progress(read_ahead(fetch, own, workers, device), description, total=len(turns))
    for turn, rows, (frames,) in zip(turns, own, batches, strict=True):
        with torch.no_grad():
            part = function(to_device(frames, device), rows)
        finite = part.isfinite().reshape(len(part), -1).all(1)
        if not finite.all():
            video = store.name_of(rows.start + int(finite.int().argmin()))
            reason = "features or weights too large for float32?"
            raise BadInput(f"{video}: not finite: {description} ({reason})")
        yield from ranks.rows_of_each(part.cpu().to(dtype), [each.stop - each.start for each in turn])
        check_stop()
    know_padding(store)


def know_padding(store: FeatureStore) -> None:
    """Let every rank know of the all-zero frames that any has read."""
    store.padded = ranks.total(torch.from_numpy(store.padded).int()).numpy() > 0


def block_size(device: torch.device, settings: Settings) -> int:
    """Videos that are encoded at a time: a CPU's caches prefer fewer."""
    return settings.batch_size * (1 if device.type == "cpu" else 4)
