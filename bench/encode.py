"""Hash codes of whole videos, as the test stage makes them, against the direct formulation.

    OMP_WAIT_POLICY=passive python -m bench.encode

Published sizes, all 25 frames of every video. Features are streamed from a file; "direct" reads it whole,
then runs the network of ``bench/direct.py`` on batches of 128. The codes are compared too: a value so near to
zero that rounding decides its sign may differ.
"""

import argparse
import tempfile
import time
from pathlib import Path

import h5py
import torch
from torch import Tensor

from bench.direct import Direct
from bench.machine import describe, interleaved, measured
from bench.passes import BATCH, N_FRAMES, PUBLISHED
from bench.store import make
from data import FeatureStore
from engine.feed import encode
from model import WSCH
from pretrain import WSCHSettings


def network() -> WSCH:
    """A network of the published sizes."""
    torch.manual_seed(0)
    return WSCH(*PUBLISHED)


def package(net: WSCH, path: Path, memory: str, bfloat16: bool = False) -> Tensor:
    """Codes of a file by the package, (N, b) int8."""
    net.bfloat16 = bfloat16
    store = FeatureStore([path], N_FRAMES, PUBLISHED[0], memory)
    settings = WSCHSettings()
    return encode(
        store, lambda frames, _: net.hash(frames), torch.device("cpu"), settings, "codes", torch.int8
    )


def directly(net: Direct, path: Path) -> Tensor:
    """Codes of a file in the obvious way, (N, b) int8."""
    with h5py.File(path) as file, torch.no_grad():
        frames = torch.from_numpy(file["feats"][()])
        return torch.cat([net.hash(batch).char() for batch in frames.split(BATCH)])


def compare(path: Path, n_videos: int, rounds: int) -> None:
    """Time of every way, and how many code entries are equal."""
    make(path, n_videos)
    net, other = network(), Direct(*PUBLISHED)
    other.load_state_dict(net.state_dict())
    ways = {
        "direct": lambda: directly(other, path),
        "from memory": lambda: package(net, path, "ram"),
        "from disk": lambda: package(net, path, "disk"),
        "from disk, bfloat16": lambda: package(net, path, "disk", True),
    }
    expected = ways["direct"]()
    seconds = interleaved(ways, rounds)
    print(f"\n{n_videos:,} videos\n\n| way | seconds | videos/s | times faster | equal code entries |")
    print("| --- | --- | --- | --- | --- |")
    for name, value in seconds.items():
        equal = float((ways[name]() == expected).double().mean())
        print(f"| {name} | {value:.2f} | {n_videos / value:.0f} | {seconds['direct'] / value:.2f} | "
              f"{100 * equal:.3f} % |", flush=True)  # fmt: skip


def once(path: Path, way: str) -> float:
    """Seconds to encode a file, for a process of its own."""
    net = network()
    if way == "direct":
        net = Direct(*PUBLISHED)
    start = time.perf_counter()
    if way == "direct":
        directly(net, path)
    else:
        package(net, path, "disk")
    return time.perf_counter() - start


def grow(path: Path, n_videos: int) -> None:
    """Time and memory as the videos grow."""
    print("\n| videos | here, s | peak, GB | direct, s | peak, GB |\n| --- | --- | --- | --- | --- |")
    for n in (n_videos, 2 * n_videos, 4 * n_videos):
        make(path, n)
        cells = []
        for way in ("here", "direct"):
            seconds, peak = measured(once, path, way)
            cells.append(f"{seconds:.1f} | {peak:.2f}")
        print(f"| {n:,} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the file goes")
    args = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "features.h5"
        compare(path, args.videos, args.rounds)
        grow(path, args.videos)


if __name__ == "__main__":
    main()
