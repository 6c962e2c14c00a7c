"""Features from disk against features in memory: videos per second in training, memory, packed files.

    OMP_WAIT_POLICY=passive python -m bench.store
    python -m bench.store --limit 0.5 --folder /a/disk

Pre-training at the published sizes, the stage that asks most of the disk, reads a contiguous float32 file
four times larger than ``--limit``. In one process the stores take turns of a few batches each; the file is
dropped from the page cache before every turn, and every turn starts with nothing read ahead. Then a process
whose private memory (RLIMIT_DATA: what it allocated, not the page cache) is held below the limit trains an
epoch from disk. The direct way to compare loading with is h5py reading the whole file at once.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from bench.machine import describe, measured
from bench.passes import BATCH, CFG, N_FRAMES, PUBLISHED, Ours
from data import FeatureStore, generator
from engine.feed import read_ahead, to_device
from model import WSCH
from pretrain import masked

WIDTH = PUBLISHED[0]
VIDEO_BYTES = N_FRAMES * WIDTH * 4
PACKED = {"one video": (1, N_FRAMES, WIDTH), "h5py's choice": True, "256 videos": (256, N_FRAMES, WIDTH)}
TURN = 6  # batches


def make(path: Path, n_videos: int, **options) -> Path:
    """Write random features with a fifth of zeros, as after a ReLU, in blocks."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        feats = file.create_dataset("feats", (n_videos, N_FRAMES, WIDTH), "f4", **options)
        for start in range(0, n_videos, 256):
            size = min(256, n_videos - start)
            block = rng.standard_normal((size, N_FRAMES, WIDTH), np.float32) + 0.8
            feats[start : start + size] = block.clip(min=0)
    return path


def drop(path: Path) -> None:
    """Let the system forget what it holds of a file, where it can be asked to."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def trainer() -> Ours:
    """Pre-training at the published sizes, without a batch yet."""
    torch.manual_seed(0)
    net = WSCH(*PUBLISHED)
    adam = torch.optim.Adam(net.parameters(), 1e-4, fused=True)
    return Ours(net, "pretrain", torch.empty(0), torch.empty(0), adam)


def train(
    ours: Ours, store: FeatureStore, epoch: int, n_batches: int | None = None, workers: int = 1
) -> float:
    """Train on the first batches of an epoch as the loop does; videos per second."""
    cpu = torch.device("cpu")
    start = time.perf_counter()
    fetch = masked(store, CFG.p1)(generator(0, "pretrain", epoch, 0))
    slices = [slice(first, first + BATCH) for first in range(0, len(store), BATCH)][:n_batches]
    n_videos = 0
    for frames, mask in read_ahead(fetch, slices, 0 if store.is_at_hand(cpu) else workers, cpu):
        ours.frames, ours.mask = to_device(frames, cpu), mask
        ours.step()
        n_videos += len(frames)
    return n_videos / (time.perf_counter() - start)


def compare(folder: Path, n_videos: int, n_packed: int, rounds: int) -> None:
    """Videos per second of every way to keep the features."""
    path = make(folder / "contiguous.h5", n_videos)
    files = {"in memory": path, "on disk, contiguous": path}
    stores = {
        "in memory": FeatureStore([path], N_FRAMES, WIDTH, "ram"),
        "on disk, contiguous": FeatureStore([path], N_FRAMES, WIDTH, "disk"),
    }
    unpacking = {}
    for name, chunks in PACKED.items():
        packed = make(folder / f"{len(stores)}.h5", n_packed, chunks=chunks, compression="gzip")
        start = time.perf_counter()
        store = FeatureStore([packed], N_FRAMES, WIDTH, "disk", scratch=folder / "unpacked")
        name = f"on disk, gzip, chunks: {name}"
        unpacking[name] = time.perf_counter() - start
        stores[name] = store
        files[name] = Path(store.files[0].file.name)
    ours = trainer()
    rates = {name: [] for name in stores}
    for turn in range(rounds + 1):  # the first one only warms up
        for name, store in stores.items():
            drop(files[name])
            rates[name].append(train(ours, store, turn, TURN))
    medians = {name: statistics.median(values[1:]) for name, values in rates.items()}
    print("\n| features | videos | unpacked once in, s | videos/s in training | of in memory |")
    print("| --- | --- | --- | --- | --- |")
    for name, rate in medians.items():
        once = f"{unpacking[name]:.1f}" if name in unpacking else "-"
        share = statistics.median(
            one / other for one, other in zip(rates[name][1:], rates["in memory"][1:], strict=True)
        )
        print(f"| {name} | {len(stores[name]):,} | {once} | {rate:.0f} | {100 * share:.0f} % |", flush=True)
    print(
        "\nWithout the unpacked copy, one batch in random order:\n\n| file | videos/s read |\n| --- | --- |"
    )
    for number, name in enumerate(PACKED, 2):
        store = FeatureStore([folder / f"{number}.h5"], N_FRAMES, WIDTH, "disk")
        rows = np.random.default_rng(1).permutation(len(store))[:BATCH]
        start = time.perf_counter()
        store.read(rows)
        rate = len(rows) / (time.perf_counter() - start)
        print(f"| gzip, chunks: {name} | {rate:.0f} |", flush=True)


def anonymous() -> float:
    """Resident memory of this process in GB that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024 / 1e9


def limited_epoch(path: Path, limit: float, training: bool) -> tuple[float, list[float]]:
    """An epoch from disk under a limit of private memory, for a process of its own.

    Returns:
        Videos per second, and anonymous resident memory at each quarter of the epoch.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 2**30),) * 2)
    store = FeatureStore([path], N_FRAMES, WIDTH, "disk")
    ours = trainer()
    held = []
    step, n_batches = ours.step, -(-len(store) // BATCH)

    def watched() -> None:
        if training:
            step()
        done.append(None)
        if len(done) % max(1, n_batches // 4) == 0:
            held.append(anonymous())

    done: list[None] = []
    ours.step = watched
    return train(ours, store, 0), held


def under_limit(path: Path, limit: float) -> None:
    """Train an epoch on a file four times larger than the memory there may be."""
    print(f"\nAn epoch under a limit of {limit:g} GiB of private memory, file of "
          f"{path.stat().st_size / 2**30:.1f} GiB:\n")  # fmt: skip
    print("| | videos/s | anonymous memory at each quarter, GB |\n| --- | --- | --- |")
    for name, training in (("reading alone", False), ("pre-training", True)):
        (rate, held), _ = measured(limited_epoch, path, limit, training)
        print(f"| {name} | {rate:.0f} | {', '.join(f'{each:.2f}' for each in held)} |", flush=True)


def load(path: Path, how: str) -> float:
    """Seconds to have a file in memory, or to read all of it from disk in random order."""
    start = time.perf_counter()
    if how == "direct":
        with h5py.File(path) as file:
            torch.from_numpy(file["feats"][()])
    elif how == "memory":
        FeatureStore([path], N_FRAMES, WIDTH, "ram")
    else:
        store = FeatureStore([path], N_FRAMES, WIDTH, "disk")
        fetch = masked(store, CFG.p1)(generator(0, "pretrain", 0, 0))
        for first in range(0, len(store), BATCH):
            fetch(slice(first, first + BATCH))
    return time.perf_counter() - start


def grow(folder: Path, n_videos: int) -> None:
    """Time and memory of loading and of streaming as the videos grow."""
    print("\n| videos | GB | loaded, s | GB held | h5py at once, s | GB held | streamed in random order, s | "
          "GB held |\n| --- | --- | --- | --- | --- | --- | --- | --- |")  # fmt: skip
    for n in (n_videos, 2 * n_videos, 4 * n_videos):
        path = make(folder / "growing.h5", n)
        cells = []
        for how in ("memory", "direct", "disk"):
            drop(path)
            seconds, peak = measured(load, path, how)
            cells.append(f"{seconds:.2f} | {peak:.2f}")
        print(f"| {n:,} | {n * VIDEO_BYTES / 1e9:.2f} | {' | '.join(cells)} |", flush=True)
        path.unlink()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--limit", type=float, default=2.0, help="GiB of memory; the file has four times that"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where the files go, on the disk in question"
    )
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(describe())
    n_videos = int(4 * args.limit * 2**30) // VIDEO_BYTES
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        compare(Path(folder), n_videos, max(TURN * BATCH, n_videos // 16), args.rounds)
        if Path("/proc/self/status").exists():
            under_limit(Path(folder) / "contiguous.h5", args.limit)
        grow(Path(folder), n_videos // 16)


if __name__ == "__main__":
    main()
