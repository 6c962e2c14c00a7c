"""The stage ``tools.baseline`` as the videos grow: seconds and peak memory of every method.

    OMP_WAIT_POLICY=passive python -m bench.baseline

FCVID's protocol at its width (D 4096, 25 frames, 64 bits): as many videos train as are ranked by themselves,
streamed from disk. What is quadratic in the videos, the cosines of ``mean``, is timed apart: some queries
against a whole database of FCVID's size.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from bench.machine import describe, measured
from bench.passes import N_FRAMES, PUBLISHED
from bench.store import make
from engine.demo import save_labels
from engine.launch import launch
from tools.baseline import METHODS, evaluate_cosine, train_model

CLASSES, FCVID = 239, 45_600
GROWTH = "\n| method | videos | seconds | peak memory, GB |\n| --- | --- | --- | --- |"
COSINES = "\n| cosines | seconds | peak memory, GB |\n| --- | --- | --- |"


def write_dataset(folder: Path, n_videos: int) -> None:
    """Random features, random labels and the JSON."""
    make(folder / "feats.h5", n_videos)
    save_labels(folder / "labels.mat", labels(n_videos).numpy().astype(np.uint8))
    splits = {name: "feats.h5" for name in ("train", "test", "query")}
    splits |= {f"{name}_label": "labels.mat" for name in ("test", "query")}
    facts = {"dataset": "bench", "num_class": CLASSES, "hidden_size": PUBLISHED[0], "max_frames": N_FRAMES}
    (folder / "bench.json").write_text(json.dumps({**facts, **splits}))


def labels(n_videos: int) -> Tensor:
    """A random class for every video, (N, num_class)."""
    return one_hot(torch.from_numpy(np.random.default_rng(0).integers(CLASSES, size=n_videos)), CLASSES)


def once(folder: Path, method: str) -> float:
    """Seconds of a whole run, for a process of its own."""
    os.chdir(folder)
    form = {"data_set_config": "bench.json", "memory": "disk", "device": "cpu"}
    start = time.perf_counter()
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        assert launch(train_model, form, ["--method", method]) == 0
    return time.perf_counter() - start


def cosines(n_queries: int) -> float:
    """Seconds to rank as many videos as FCVID has by cosine; for a process of its own."""
    database = normalize(torch.randn(FCVID, PUBLISHED[0]), dim=1)
    known = labels(FCVID)
    start = time.perf_counter()
    evaluate_cosine(database[:n_queries], database, known[:n_queries], known, [5, 20, 40, 60, 80, 100])
    return time.perf_counter() - start


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the files go")
    args = parser.parse_args()
    print(describe())
    print(GROWTH)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = Path(folder).absolute()
        for n_videos in (args.videos, 2 * args.videos, 4 * args.videos):
            write_dataset(folder, n_videos)
            for method in METHODS:
                seconds, peak = measured(once, folder, method)
                print(f"| {method} | {n_videos:,} | {seconds:.1f} | {peak:.2f} |", flush=True)
    print(COSINES)
    for n_queries in (args.queries, 2 * args.queries):
        seconds, peak = measured(cosines, n_queries)
        print(f"| {n_queries:,} x {FCVID:,} | {seconds:.1f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
