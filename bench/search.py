"""Codes out at size: the approximate indexes against the exact search, and encoding in flat memory.

``python -m bench.search`` searches 1,000,000 synthetic codes (noisy copies of class codes) by every engine
and prints recall, time and size. Recall counts what is as near as the exact k-th neighbour: which of many
ties are found is no fault. ``--encode`` runs the stage ``tools.encode`` on files that grow, prints its peak
memory, and kills it twice on the largest, which must give the same bytes.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from bench.machine import describe
from engine.systems import resolve
from formats.codefile import CodeFile
from formats.weights import save_checkpoint
from pretrain import fresh_network
from tools.indexes import INDEXES

ROOT = Path(__file__).parents[1]
N_QUERIES, K, CLASSES, FLIPPED = 1000, 10, 1000, 0.15
N_FRAMES, WIDTH = 8, 256


def synthetic(n: int, bits: int, seed: int) -> np.ndarray:
    """Packed codes: noisy copies of the same class codes."""
    prototypes = np.random.default_rng(0).random((CLASSES, bits)) < 0.5
    rng = np.random.default_rng([1, seed])
    label = rng.integers(CLASSES, size=n)
    parts = np.array_split(label, max(1, n // 100_000))
    return np.concatenate([np.packbits(prototypes[part] ^ (rng.random((len(part), bits)) < FLIPPED), axis=1)
                           for part in parts])  # fmt: skip


def compare(n: int, bits: int) -> None:
    """Every engine: seconds to build, to search, size, recall."""
    queries = synthetic(N_QUERIES, bits, 1)
    print(f"\n{n:,} codes of {bits} bits, {N_QUERIES} queries, k = {K}\n")
    print("| index | built in, s | ms a query | size, MB | recall |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "database.h5"
        codes = synthetic(n, bits, 0)
        database = CodeFile(path, codes, np.zeros(n, "u4"), None, bits, "", "synthetic")
        reach = None
        for name, engine in INDEXES.items():
            began = time.perf_counter()
            search = engine(database, K, folder, None) if name == "lance" else engine(database, K)
            built = time.perf_counter() - began
            asked = queries[:20] if name == "lance" else queries  # it reads the table for every query
            began = time.perf_counter()
            _, distances = search(asked)
            seconds = time.perf_counter() - began
            reach = distances[:, -1:] if reach is None else reach
            recall = (distances <= reach[: len(asked)]).mean()
            kept = [*Path(folder).glob(f"*{name}*.faiss"), *Path(folder).glob("*.lance/**/*")]
            size = sum(each.stat().st_size for each in kept if each.is_file()) or codes.nbytes
            each = 1000 * seconds / len(asked)
            print(f"| {name} | {built:.1f} | {each:.2f} | {size / 1e6:.0f} | {recall:.3f} |", flush=True)


def encode(folder: Path, features: Path, resume: bool = False) -> subprocess.Popen:
    """The stage in a process of its own."""
    options = ["--resume"] if resume else ["--features", str(features), "--weight_path", "x.pth"]
    command = [sys.executable, str(ROOT / "run.py"), "--stage", "tools.encode", "--device", "cpu", *options]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def grow(n_videos: int) -> None:
    """Peak memory of encoding as the videos grow; two kills."""
    print(f"\nencoding, {N_FRAMES} frames of width {WIDTH}\n")
    print("| videos | features, MB | seconds | peak memory, MB |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {"hidden_size": 64, "decoder_size": 4, "hashcode_size": 64, "stage": "test"}
        settings = resolve({"data_set_config": str(ROOT / "Json/demo.json")}, options)
        net = fresh_network(settings, WIDTH)
        content = {
            "stage": "train",
            "model": net.state_dict(),
            "sizes": net.sizes,
            "optimizer": {},
            "inputs": {"features": {"shape": [1, N_FRAMES, WIDTH]}},
            "settings": settings.as_dict(),
        }
        save_checkpoint(folder / "x.pth", content)
        for n in (n_videos, 2 * n_videos, 4 * n_videos):
            features = folder / f"{n}.h5"
            with h5py.File(features, "w") as file:
                array = file.create_dataset("feats", (n, N_FRAMES, WIDTH), "f4")
                for start in range(0, n, 10_000):
                    stop = min(start + 10_000, n)
                    rng = np.random.default_rng(start)
                    array[start:stop] = rng.standard_normal((stop - start, N_FRAMES, WIDTH), np.float32)
            began = time.perf_counter()
            process = encode(folder, features)
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0, process.stderr.read()
            seconds = time.perf_counter() - began
            size, peak = features.stat().st_size / 1e6, usage.ru_maxrss / 1e3
            print(f"| {n:,} | {size:.0f} | {seconds:.1f} | {peak:.0f} |", flush=True)
        whole = max(folder.glob("code/*.h5"), key=os.path.getmtime).read_bytes()
        process = encode(folder, features)
        for share in (0.3, 0.6):
            while not (parts := list(folder.glob("code/*.part"))) or parts[0].stat().st_size < share * len(
                whole
            ):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"killed at {100 * parts[0].stat().st_size / len(whole):.0f} %", flush=True)
            process = encode(folder, features, resume=True)
        assert process.wait() == 0, process.stderr.read()
        same = max(folder.glob("code/*.h5"), key=os.path.getmtime).read_bytes() == whole
        print("the same bytes" if same else "OTHER BYTES")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codes", type=int, default=1_000_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--encode", action="store_true", help="encoding instead of searching")
    parser.add_argument("--videos", type=int, default=25_000, help="with --encode: of the smallest file")
    arguments = parser.parse_args()
    print(describe())
    torch.manual_seed(0)
    if arguments.encode:
        grow(arguments.videos)
    else:
        compare(arguments.codes, arguments.bits)


if __name__ == "__main__":
    main()
