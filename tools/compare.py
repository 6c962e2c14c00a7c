"""``python -m tools.compare LOG...``: tested runs beside each other, means and deviations over seeds.

A group is of one dataset, protocol, system (of baselines, method), number of bits and precision of the test.
Its runs differ in the seed; where they also differ in another setting of the training, or in what was
trained, they are split and the column ``settings`` names it. Only the network that a test judged counts,
not the other rows of its table. Five seeds at three bit lengths, then the table of them:

    for bits in 32 64 128; do for seed in 1 2 3 4 5; do
        python run.py --hashcode_size $bits --seed $seed; done; done
    python -m tools.compare log

The training of a tested network is found by its checkpoint (``logs.History``), in the folders of the logs
that are compared: settings, seconds of all epochs and commits are taken from there.

``--format csv`` has every metric of a result, a line for each group, metric and cut: ``at`` is the K, or the
Hamming radius. ``published`` is the published value of the same system, dataset, bits and protocol.
"""

import argparse
import csv
import io
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.launch import Parser, exit_status
from engine.systems import system_of
from formats.files import BadInput, expand, write_whole
from formats.tables import latex, markdown
from tools.logs import BY_K, NUMBERS, History, Log, is_number, read_logs

# A metric's title in a table, over each of its cuts or radii.
TITLES = {
    "mAP": "mAP@{}",
    "mAP_tie_expected": "mAP@{}, ties averaged",
    "mAP_relevant": "mAP@{} by relevant",
    "mAP_retrieved": "mAP@{} by retrieved",
    "precision": "precision@{}",
    "recall": "recall@{}",
    "ceiling": "ceiling@{}",
    "chance": "chance@{}",
    "mAP_whole": "mAP, whole",
    "precision_radius_2": "precision, radius 2",
    "precision_by_radius": "precision, radius {}",
    "recall_by_radius": "recall, radius {}",
    "seconds": "training, s",
}
COLUMNS = ("mAP", "mAP_whole", "precision_radius_2", "seconds")  # where nobody asks for others
# Settings that change no number, that the group is made by, or that only the test has.
NO_DIFFERENCE = {"seed", "stage", "data_set_config", "result_log_dir", "result_weight_dir", "result_dir",
                 "weight_path", "hashcode_size", "device", "memory", "num_workers", "checkpoint_minutes",
                 "eval_every", "ks", "protocol", "exclude_self"}  # fmt: skip

Metric = tuple[str, int | None]  # name, and K or radius


class Kind(NamedTuple):
    """What a group has in common; tables are sorted by it."""

    dataset: str
    protocol: str
    system: str
    method: str  # of a baseline, else empty
    bits: int  # 0: real values
    precision: str


@dataclass
class Trial:
    """One run with a result."""

    path: str  # of its log
    time: str
    kind: Kind
    seed: int | str  # where nobody knows it: the checkpoint, or else the log
    settings: dict[str, str]  # of its training, and what else must not be mixed
    metrics: dict[Metric, float]
    published: dict[Metric, float]
    commits: list[str]


@dataclass
class Group:
    """Runs that differ in the seed alone."""

    kind: Kind
    settings: str  # in which it differs from others of its kind, in words
    trials: list[Trial]

    def values(self, metric: Metric) -> list[float]:
        """Of the runs that have this metric."""
        return [trial.metrics[metric] for trial in self.trials if metric in trial.metrics]

    @property
    def commits(self) -> str:
        """The versions of the code that trained and tested it."""
        return " ".join(sorted({commit[:7] for trial in self.trials for commit in trial.commits})) or "-"


def main(arguments: list[str]) -> int:
    """Compare the logs that the command line names; the exit status."""
    parser = Parser(prog="python -m tools.compare", description="Tested runs beside each other, over seeds.")
    parser.add_argument("logs", nargs="+", metavar="LOG", help="log/<n>.jsonl, or a folder of logs")
    parser.add_argument("--format", choices=WRITERS, default="markdown",
                        help="markdown (default), latex (booktabs), or csv: every metric")  # fmt: skip
    every, usual = " ".join(TITLES), " ".join(COLUMNS)
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", choices=TITLES,
                        help=f"columns of a table (default: {usual}), of {every}")  # fmt: skip
    parser.add_argument("--out", type=expand, metavar="FILE", help="default: the terminal")
    return exit_status(lambda: compare(parser.parse_args(arguments)))


def compare(options: argparse.Namespace) -> None:
    """Read the logs and write their table, whole or not at all; what to know of them goes to stderr.

    Raises:
        BadInput: a log cannot be used, none has a result, or no run has a metric that was asked for.
    """
    groups = grouped(read_trials(options.logs))
    there = {name for group in groups for trial in group.trials for name, _ in trial.metrics}
    if lacking := [name for name in options.metrics or () if name not in there]:
        raise BadInput(f"--metrics: no run has '{lacking[0]}', but {', '.join(sorted(there))}")
    text = WRITERS[options.format](groups, options.metrics or COLUMNS)
    if options.out is None:
        print(text, end="")
    else:
        write_whole(options.out, lambda path: path.write_text(text, encoding="utf-8", newline=""))


def note(text: str) -> None:
    """Say something beside the table."""
    print(text, file=sys.stderr)


# ---------------------------------------------------------------------------------------------------- runs


def read_trials(names: Sequence[str]) -> list[Trial]:
    """The runs with a result, each log once.

    Raises:
        BadInput: a log cannot be used, or none has a result.
    """
    logs = list({log.path.resolve(): log for log in read_logs(names)}.values())
    tested = [log for log in logs if log.result is not None]
    if not tested:
        raise BadInput(f"{', '.join(names)}: no result of a test (stages test, bth.test, tools.baseline)")
    history = History({log.path.parent for log in tested})
    return [trial_of(log, history) for log in tested]


def trial_of(log: Log, history: History) -> Trial:
    """What a run with a result is and reached."""
    result, method = log.result, log.result.get("method") or ""
    weights = result.get("weights")
    training = [log] if method else history.training(weights) if weights else None
    if training is None:
        note(f"{log.path}: no complete log of the training of {weights}: seconds and settings not known")
    seed = result.get("seed")
    if seed is None and training:
        seed = training[-1].start.get("seed")  # the result of an older version does not say it
    if seed is None:
        note(f"{log.path}: seed not known: a run by itself")
    protocol = str(result.get("protocol")) + (" without itself" if result.get("exclude_self") else "")
    kind = Kind(
        dataset=str(result.get("dataset")),
        protocol=protocol,
        system=result.get("system") or system_of(result.get("stage")).name,
        method=method,
        bits=result.get("bits") or 0,
        precision=result.get("precision_setting") or str(log.setting("precision")),
    )
    settings = {"network": str(result.get("origin")).removesuffix(f", seed {seed}")}
    settings |= {key: str(result.get(key)) for key in ("database", "queries")}
    settings |= {"ks": " ".join(sorted(result["mAP"], key=int)), "training": "log not found"}
    if training is not None:
        settings["training"] = " ".join(str(each.start.get("stage")) for each in training)
        settings |= training_settings(training)
    commits = {str(each.start["git_commit"]): None
               for each in [*(training or ()), log] if each.start.get("git_commit")}  # fmt: skip
    metrics = metrics_of(result)
    seconds = [epoch.get("seconds") for each in training or () for epoch in each.epochs]
    if seconds and all(map(is_number, seconds)):
        metrics["seconds", None] = sum(seconds)
    published = {("mAP", int(k)): value for k, value in (result.get("published") or {}).items()}
    own_seed = seed if seed is not None else weights or str(log.path)
    time = str(result.get("time", ""))
    return Trial(str(log.path), time, kind, own_seed, settings, metrics, published, list(commits))


def training_settings(training: Iterable[Log]) -> dict[str, str]:
    """The settings of all stages by dotted name; where stages differ, each value once, in their order."""
    found: dict[str, dict[str, None]] = {}
    for log in training:
        for name, value in (log.start.get("settings") or {}).items():
            for key, inner in value.items() if isinstance(value, Mapping) else [(None, value)]:
                dotted = f"{name}.{key}" if key else name
                if dotted not in NO_DIFFERENCE:
                    found.setdefault(dotted, {})[json.dumps(inner)] = None
    return {name: " then ".join(values) for name, values in found.items()}


def metrics_of(result: Mapping) -> dict[Metric, float]:
    """Every metric of a result, by name and K or radius."""
    found = {(name, int(k)): value for name in BY_K for k, value in result.get(name, {}).items()}
    found |= {(name, None): result[name] for name in NUMBERS
              if result.get(name) is not None}  # fmt: skip
    for name in ("precision", "recall"):
        values = result.get("by_radius", {}).get(name, [])
        found |= {(f"{name}_by_radius", radius): value for radius, value in enumerate(values)}
    return found


def grouped(trials: Iterable[Trial]) -> list[Group]:
    """The groups, sorted; of runs with the same seed the newest counts, which is said."""
    kinds: dict[Kind, list[Trial]] = {}
    for trial in trials:
        kinds.setdefault(trial.kind, []).append(trial)
    groups = []
    for kind, alike in sorted(kinds.items()):
        # A setting that an older version did not have had its default: it makes no difference by itself.
        found: dict[str, set[str]] = {}
        for name, value in (each for trial in alike for each in trial.settings.items()):
            found.setdefault(name, set()).add(value)
        differing = sorted(name for name, values in found.items() if len(values) > 1)
        split: dict[str, dict[int | str, Trial]] = {}
        for trial in sorted(alike, key=lambda trial: trial.time):
            stated = (f"{name} {trial.settings[name]}" for name in differing if name in trial.settings)
            words = "; ".join(stated) or ("not logged" if differing else "")
            seeds = split.setdefault(words, {})
            if trial.seed in seeds:
                older = seeds.pop(trial.seed).path
                note(f"{older}: of the same seed as the newer {trial.path}, which counts alone")
            seeds[trial.seed] = trial
        groups += [Group(kind, words, list(seeds.values())) for words, seeds in sorted(split.items())]
    return groups


# -------------------------------------------------------------------------------------------------- tables


def columns(groups: Iterable[Group], names: Iterable[str]) -> list[Metric]:
    """The metrics of these names that any run has, cuts ascending."""
    there = {metric for group in groups for trial in group.trials for metric in trial.metrics}
    return [metric for name in names
            for metric in sorted(there, key=lambda each: each[1] or 0) if metric[0] == name]  # fmt: skip


def cell(group: Group, metric: Metric) -> str:
    """Mean and standard deviation of a group, in words as short as they can be."""
    values, digits = group.values(metric), 1 if metric[0] == "seconds" else 3
    if not values:
        return "-"
    deviation = f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else "-"
    fewer = f" (n = {len(values)})" if len(values) < len(group.trials) else ""
    return f"{statistics.fmean(values):.{digits}f} ± {deviation}{fewer}"


def table(groups: list[Group], names: Iterable[str]) -> tuple[str, list[list[str]], int]:
    """A table for readers: its caption, its lines of cells, the header first, and how many columns are text.

    What all groups share stands in the caption.
    """
    metrics = columns(groups, names)
    facts = {
        "dataset": [group.kind.dataset for group in groups],
        "protocol": [group.kind.protocol for group in groups],
        "precision": [group.kind.precision for group in groups],
        "system": [" ".join(filter(None, group.kind[2:4])) for group in groups],
        "bits": [str(group.kind.bits or "real") for group in groups],
        "settings": [group.settings for group in groups],
        "commit": [group.commits for group in groups],
    }
    shared = [name for name in ("dataset", "protocol", "precision", "settings", "commit")
              if len(set(facts[name])) == 1]  # fmt: skip
    caption = ", ".join(f"{name} {facts[name][0]}" for name in shared if facts[name][0])
    caption += ("; " if caption else "") + "mean ± standard deviation over seeds"
    texts = [name for name in facts if name not in shared]
    lines = [[*texts, "seeds", *(TITLES[name].format(at) for name, at in metrics)]]
    for row, group in enumerate(groups):
        own = {name: facts[name][row] for name in texts}
        lines.append([*own.values(), str(len(group.trials)), *(cell(group, metric) for metric in metrics)])
        if published := group.trials[-1].published:
            own |= {"system": f"{own['system']}, published"} | {
                n: "-" for n in ("settings", "commit") if n in own
            }
            values = (f"{published[metric]:.3f}" if metric in published else "-" for metric in metrics)
            lines.append([*own.values(), "-", *values])
    return caption, lines, len(texts)


def comma_separated(groups: list[Group]) -> str:
    """Every metric of every group, one a line, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("metric", "at", "n", "mean", "sd", "published")
    writer.writerow([*Kind._fields, "settings", *numbers, "seeds", "commit"])
    for group in groups:
        who = [*group.kind._replace(bits=group.kind.bits or ""), group.settings]
        published = group.trials[-1].published
        for metric in columns([group], TITLES):
            values = group.values(metric)
            deviation = statistics.stdev(values) if len(values) > 1 else ""
            seeds = " ".join(sorted(str(trial.seed) for trial in group.trials if metric in trial.metrics))
            numbers = (*metric, len(values), statistics.fmean(values), deviation, published.get(metric, ""))
            writer.writerow([*who, *numbers, seeds, group.commits])
    return text.getvalue()


WRITERS = {
    "markdown": lambda groups, names: markdown(*table(groups, names)),
    "latex": lambda groups, names: latex(*table(groups, names)),
    "csv": lambda groups, _: comma_separated(groups),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
