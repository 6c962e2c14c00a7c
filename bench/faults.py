"""Kill training processes at random moments, resume until done, compare with an undisturbed run bit for bit.

``python -m bench.faults`` runs the pipeline on the demo set in processes of its own and sends SIGKILL: at a
random time, while a file (checkpoint, prepared file) is being written, or as an epoch begins (where the
k-means is). ``--stage bth.pipeline`` does so to BTH. ``--together`` runs two pipelines of different seeds at
once, in the same folders, with two log folders, with two weight folders, and kills either at random times.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import h5py
import torch

from bench.machine import describe

ROOT = Path(__file__).parents[1]
OPTIONS = ["--max_iter", "3", "3", "--device", "cpu", "--checkpoint_minutes", "0.002"]


def start(work: Path, *arguments: str) -> subprocess.Popen:
    """``python run.py`` in a folder of its own, with one thread."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=work,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_to_kill(
    process: subprocess.Popen, work: Path, kind: str, rng: random.Random, seconds: float
) -> bool:
    """Wait for the moment of a kind; False if the process ended before."""
    if kind == "at a random time":
        time_out = rng.uniform(0, seconds)
        try:
            process.wait(time_out)
        except subprocess.TimeoutExpired:
            return True
        return False
    time_out = time.monotonic() + rng.uniform(0, seconds)  # only from here on does the moment count
    while process.poll() is None:
        if time.monotonic() > time_out:
            if kind == "while a file was written" and list((work / "weight").glob("*.tmp")):
                return True
            logs = sorted((work / "log").glob("*.txt"))
            if kind == "as an epoch began" and logs and time.time() - logs[-1].stat().st_mtime < 0.05:
                time.sleep(rng.uniform(0, 0.1))
                return True
        time.sleep(0.0005)
    return False


def outcome(work: Path) -> tuple[list, dict[str, torch.Tensor]]:
    """What must not depend on kills: losses and results of the logs, tensors of all files in ``weight/``."""
    numbers, tensors = [], {}
    for path in sorted(work.glob("log/*.jsonl")):
        for line in path.read_text().splitlines():
            event = json.loads(line)
            values = (event.get(key) for key in ("epoch", "losses", "mAP"))
            numbers.append((path.name, event["event"], *values))
    for path in work.glob("weight/*.pth"):
        content = torch.load(path, weights_only=True)
        tensors |= {f"{path.name}/{name}": value for name, value in content["model"].items()}
        for number, state in content["optimizer"]["state"].items():
            tensors |= {f"{path.name}/adam/{number}/{name}": value for name, value in state.items()}
    for path in work.glob("weight/*.h5"):
        with h5py.File(path, "r") as file:
            tensors |= {f"{path.name}/{name}": torch.from_numpy(array[()]) for name, array in file.items()}
    return numbers, tensors


ARRANGEMENTS = {
    "the same folders": ("log", "weight", "log", "weight"),
    "two log folders, one weight folder": ("log1", "weight", "log2", "weight"),
    "one log folder, two weight folders": ("log", "weight1", "log", "weight2"),
}


class Pipeline:
    """One of two pipelines that run at once: its folders, its seed, its process."""

    def __init__(self, work: Path, log: str, weight: str, seed: int):
        self.work, self.log, self.weight, self.seed = work, work / log, work / weight, seed
        self.options = ["--result_log_dir", log, "--result_weight_dir", weight, "--seed", str(seed)]
        self.process = start(work, *OPTIONS, *self.options)

    @property
    def runs(self) -> list[int]:
        """Its numbers, once they are reserved."""
        for path in self.log.glob("*.jsonl"):
            record = json.loads(path.open().readline())
            if record["event"] == "reserved" and record["settings"]["seed"] == self.seed:
                return record["runs"]
        return []

    def go_on(self) -> None:
        """Start again after a kill."""
        resume = (
            ["--resume", str(self.runs[0]), *self.options[:2]] if self.runs else [*OPTIONS, *self.options]
        )
        self.process = start(self.work, *resume)

    def outcome(self) -> tuple[list, list[torch.Tensor]]:
        """Losses of all epochs and the results; the tensors of both networks."""
        lines = [line for n in self.runs for line in (self.log / f"{n}.jsonl").read_text().splitlines()]
        events = [json.loads(line) for line in lines]
        files = [next(self.weight.glob(f"{n}_*.pth")) for n in self.runs[:2]]
        models = [torch.load(path, weights_only=True)["model"] for path in files]
        numbers = [
            (event.get("losses"), event.get("mAP"))
            for event in events
            if event["event"] in ("epoch", "result")
        ]
        return numbers, [value for model in models for value in model.values()]


def run_together(folder: Path, prepared: Path, n_kills: int, rng: random.Random) -> int:
    """Two pipelines at once in every arrangement; the number of arrangements that went wrong."""

    def prepare(name: str) -> Path:
        for part in ("Json", "demo"):
            shutil.copytree(prepared / part, folder / name / part)
        return folder / name

    expected = []
    for seed in (1, 2):
        alone = Pipeline(prepare(f"alone{seed}"), "log", "weight", seed)
        assert alone.process.wait() == 0, alone.process.stderr.read()
        expected.append(alone.outcome())
    wrong = 0
    for number, (name, (log1, weight1, log2, weight2)) in enumerate(ARRANGEMENTS.items()):
        work, kills = prepare(f"together{number}"), 0
        both = [Pipeline(work, log1, weight1, 1), Pipeline(work, log2, weight2, 2)]
        while any(each.process.poll() is None for each in both):
            time.sleep(rng.uniform(0, 4))
            victim = rng.choice(both)
            if kills < n_kills and victim.process.poll() is None:
                victim.process.kill()
                victim.process.wait()
                victim.go_on()
                kills += 1
        found = [each.outcome() for each in both]
        alike = all(
            one[0] == other[0] and all(map(torch.equal, one[1], other[1]))
            for one, other in zip(found, expected, strict=True)
        )
        left = (path for part in ("*.part.pth", "*.tmp", "*.reserved") for path in work.rglob(part))
        stray = [str(path.relative_to(work)) for path in left]
        wrong += not alike or bool(stray)
        print(f"{name}: {kills} kills, {'both equal bit for bit' if alike else 'DIFFERENT'}, "
              f"stray files: {stray or 'none'}", flush=True)  # fmt: skip
    return wrong


def main() -> int:
    """Print how many kills there were, of what kind, and whether all runs ended alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many SIGKILLs (default: 100)")
    parser.add_argument(
        "--per_run", type=int, default=12, help="at most so many in one pipeline run (default: 12)"
    )
    parser.add_argument("--stage", default="pipeline", help="pipeline (default) or bth.pipeline")
    parser.add_argument("--together", action="store_true", help="two pipelines at once, --kills of each pair")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    options = ["--stage", arguments.stage, *OPTIONS]
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        calm = Path(folder) / "calm"
        calm.mkdir()
        shutil.copytree(ROOT / "Json", calm / "Json")
        began = time.monotonic()
        process = start(calm, *options)
        if process.wait():
            raise SystemExit(process.stderr.read())
        seconds = time.monotonic() - began
        if arguments.together:
            return run_together(Path(folder), calm, arguments.kills, rng)
        expected, tensors = outcome(calm)
        files = {str(path.relative_to(calm)) for path in calm.rglob("*")}
        kills, runs, different = Counter(), 0, 0
        while kills.total() < arguments.kills:
            runs += 1
            work = Path(folder) / f"run{runs}"
            for part in ("Json", "demo"):
                shutil.copytree(calm / part, work / part)
            in_this_run = 0
            while True:
                resumable = list((work / "log").glob("*.jsonl")) if (work / "log").exists() else []
                process = start(work, *(["--resume"] if resumable else options))
                wanted = in_this_run < arguments.per_run and kills.total() < arguments.kills
                kind = rng.choice(["at a random time", "while a file was written", "as an epoch began"])
                if wanted and wait_to_kill(process, work, kind, rng, seconds / 4):
                    process.kill()
                    process.wait()
                    kills[kind] += 1
                    in_this_run += 1
                    continue
                error = process.communicate()[1]
                if process.returncode == 0 or "no unfinished run" in error:
                    break
                raise SystemExit(f"run {runs} cannot be resumed: {error}")
            found, others = outcome(work)
            same = found == expected and others.keys() == tensors.keys()
            same = same and all(torch.equal(value, others[name]) for name, value in tensors.items())
            stray = {str(path.relative_to(work)) for path in work.rglob("*")} ^ files
            different += not same or bool(stray)
            verdict = "equal bit for bit" if same else "DIFFERENT"
            print(
                f"run {runs}: {in_this_run} kills, {verdict}, stray files: {sorted(stray) or 'none'}",
                flush=True,
            )
    print(
        f"{kills.total()} kills in {runs} pipeline runs: "
        + ", ".join(f"{n} {kind}" for kind, n in kills.items())
    )
    print(
        f"{runs - different} of {runs} runs ended like the undisturbed one, bit for bit, without a stray file"
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
