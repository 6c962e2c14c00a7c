"""How far the losses of several ranks lie from those of one process, beside what a second thread changes.

    python -m bench.agreement
    python -m bench.agreement --ranks 2 3 --epochs 5

On the demo set, both systems. Every way adds up in another order, which flips single bits of codes; from the
second cycle on k-means then takes another path. A row is one term of the loss in one epoch: its relative
distance from one process with one thread.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.machine import describe

ROOT = Path(__file__).parents[1]
Losses = dict[tuple[str, int, str, str], float]  # of (stage, epoch, pass, term)


def run(folder: Path, n_ranks: int, n_threads: int, stages: list[str], epochs: int) -> Losses:
    """Run these stages in a folder; the losses that they logged."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(n_threads), "OMP_WAIT_POLICY": "passive"}
    for stage in stages:
        options = ["--stage", stage, "--data_set_config", ROOT / "Json/demo.json", "--device", "cpu"]
        options += ["--result_weight_dir", "weight", "--max_iter", str(epochs), str(epochs)]
        subprocess.run(
            [sys.executable, *(launcher if n_ranks > 1 else []), ROOT / "run.py", *options],
            cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    found = {}
    for number, stage in enumerate(stages, 1):
        for line in (folder / f"log/{number}.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "epoch":
                for name, terms in event["losses"].items():
                    found |= {(stage, event["epoch"], name, term): value for term, value in terms.items()}
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    print(describe())
    ways = {"two threads": (1, 2)} | {f"{n} ranks": (n, 1) for n in args.ranks}
    print(f"\n| stage | epoch | pass | term | {' | '.join(ways)} |\n|{' --- |' * (4 + len(ways))}")
    with tempfile.TemporaryDirectory() as name:
        for stages in (["pretrain", "train"], ["bth.pretrain", "bth.prepare", "bth.train"]):
            found = {}
            for way, (n_ranks, n_threads) in {"one": (1, 1), **ways}.items():
                folder = Path(name, f"{stages[0]} {way}")
                folder.mkdir()
                found[way] = run(folder, n_ranks, n_threads, stages, args.epochs)
            for key, value in found.pop("one").items():
                cells = [f"{abs(other[key] / value - 1):.1e}" for other in found.values()]
                print(f"| {' | '.join(map(str, key))} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
