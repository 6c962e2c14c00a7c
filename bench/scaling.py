"""WSCH's training stages in one process and in several: time per epoch, memory of a rank, bytes exchanged.

    OMP_WAIT_POLICY=passive python -m bench.scaling
    python -m bench.scaling --ranks 1 2 4 8 --videos 4096

Published sizes, one thread a rank, random videos. Runs of every number of ranks take turns. Seconds are the
median of a stage's epochs but the first, as logged. Bytes are those that a rank hands to a sum or an exchange
while the stage runs, over its steps. On a machine with GPUs every rank has one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch.distributed as dist

from bench.machine import describe, peak
from bench.passes import BATCH, N_FRAMES, PUBLISHED
from bench.store import make
from engine import ranks
from engine.launch import launch
from pipeline import train_model

STAGES = {"pretrain": 1, "train": 2}  # and how many passes with a step for every batch an epoch has
EPOCHS = 2


def rank(config: str) -> None:
    """What every rank does: both stages; leaves its peak memory in GB, and the bytes of every stage."""
    handed = defaultdict(int)

    def reduce(tensor, *options, **named):
        handed[stage] += tensor.nbytes
        return all_reduce(tensor, *options, **named)

    def gather(found, own, **named):
        handed[stage] += own.nbytes
        return all_gather(found, own, **named)

    all_reduce, all_gather = dist.all_reduce, dist.all_gather
    dist.all_reduce, dist.all_gather = reduce, gather
    with ranks.joined():
        for stage in STAGES:
            status = launch(train_model, {}, ["--data_set_config", config, "--stage", stage])
            if status:
                sys.exit(status)
    Path(f"rank{ranks.rank()}.json").write_text(json.dumps({"peak": peak(), **handed}))


def once(n_ranks: int, folder: Path, n_videos: int) -> dict[str, list[float]]:
    """Run both stages; seconds of their epochs, bytes of a step and peak memory of the ranks."""
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_ranks}"]
    command = [*(launcher if n_ranks > 1 else []), "-m", "bench.scaling", "--rank", "../config.json"]
    root = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    told = [json.loads((folder / f"rank{number}.json").read_text()) for number in range(n_ranks)]
    found = {"peak": [each["peak"] for each in told]}
    for number, (stage, n_passes) in enumerate(STAGES.items(), 1):
        events = [json.loads(line) for line in (folder / f"log/{number}.jsonl").read_text().splitlines()]
        found[stage] = [event["seconds"] for event in events if event["event"] == "epoch"][1:]
        steps = EPOCHS * n_passes * -(-n_videos // BATCH)
        found[f"{stage} bytes"] = [each.get(stage, 0) / steps for each in told]
    return found


def compare(folder: Path, numbers: list[int], n_videos: int, rounds: int) -> None:
    """A row for every number of ranks."""
    make(folder / "train.h5", n_videos)
    names = ("train", "test", "query")
    files = {name: "train.h5" for name in names} | {f"{name}_label": "none.mat" for name in names}
    config = {"dataset": "random", "root": str(folder), **files, "num_class": 1,
              "hidden_size": PUBLISHED[0], "max_frames": N_FRAMES,
              "run": {"max_iter": [EPOCHS] * 2}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    found = defaultdict(lambda: defaultdict(list))
    for turn in range(rounds):
        for n_ranks in numbers:
            for name, values in once(n_ranks, folder / f"{turn}-{n_ranks}", n_videos).items():
                found[n_ranks][name] += values
    print("\n| ranks | pretrain epoch, s | times faster | train epoch, s | times faster | GB of a rank | "
          "MB a step, pretrain | train |\n| --- | --- | --- | --- | --- | --- | --- | --- |")  # fmt: skip
    base = {stage: statistics.median(found[numbers[0]][stage]) for stage in STAGES}
    for n_ranks, values in found.items():
        cells = [f"{(s := statistics.median(values[stage])):.1f} | {base[stage] / s:.2f}" for stage in STAGES]
        traffic = [f"{max(values[f'{stage} bytes']) / 1e6:.1f}" for stage in STAGES]
        cells += [f"{max(values['peak']):.2f}", *traffic]
        print(f"| {n_ranks} | {' | '.join(cells)} |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--videos", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rank", help=argparse.SUPPRESS)  # the configuration: one of the ranks
    args = parser.parse_args()
    if args.rank:
        rank(args.rank)
        return
    print(describe())
    print(f"\n{args.videos} videos, batches of {BATCH}, one thread a rank")
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args.ranks, args.videos, args.rounds)


if __name__ == "__main__":
    main()
