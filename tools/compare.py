"""``python -m tools.compare LOG...``: tested runs beside each other, means and deviations over seeds.

A line is a group of runs that differ in the seed alone (``tools/trials.py``); in which other settings groups
differ stands in the column ``settings``; what all runs of a system share though it is not the published
value, also where a dataset JSON says so, stands above the table. Every dataset has a table of its own. Only
the network that a test judged counts, not the other rows of its table. Five seeds at three bit lengths, then
their table:

    for bits in 32 64 128; do for seed in 1 2 3 4 5; do
        python run.py --hashcode_size $bits --seed $seed; done; done
    python -m tools.compare log

Settings, seconds of all epochs and commits are those of the training, whose logs are looked for in the
folders of the logs that are compared.

``--format csv`` has every metric of a result, a line for each group, metric and cut: ``at`` is the K, or the
Hamming radius; ``settings`` are all that differ or are not published. ``published`` is the published value of
the same system, dataset, bits and protocol.
"""

import argparse
import csv
import io
import sys
from collections.abc import Callable
from functools import partial

from engine.launch import Parser, exit_status
from formats.files import BadInput, expand, write_whole
from formats.tables import latex, markdown
from tools.logs import no_result, read_logs
from tools.trials import Group, Kind, Metric, grouped, metrics_among, newest, spread, trials_of

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


def main(arguments: list[str]) -> int:
    """Compare the logs that the command line names; the exit status."""
    parser = Parser(prog="python -m tools.compare", description="Tested runs beside each other, over seeds.")
    parser.add_argument("logs", nargs="+", metavar="LOG", help="log/<n>.jsonl, or a folder of logs")
    parser.add_argument("--format", choices=WRITERS, default="markdown",
                        help="markdown (default), latex (booktabs), or csv: every metric")  # fmt: skip
    every, usual = " ".join(TITLES), " ".join(COLUMNS)
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", choices=TITLES,
                        help=f"which (default: {usual}; csv: all), of {every}")  # fmt: skip
    parser.add_argument("--at", nargs="+", type=int, metavar="K",
                        help="at these K (or radii) alone")  # fmt: skip
    parser.add_argument("--out", type=expand, metavar="FILE", help="default: the terminal")
    return exit_status(lambda: compare(parser.parse_args(arguments)))


def compare(options: argparse.Namespace) -> None:
    """Read the logs and write their table, whole or not at all; what to know of them goes to stderr.

    Raises:
        BadInput: a log cannot be used, none has a result, or no run has a metric that was asked for.
    """
    logs = read_logs(options.logs)
    tested = [log for log in logs if log.result]
    if not tested:
        raise BadInput(f"{', '.join(options.logs)}: {no_result(logs)}")
    groups = [newest(group) for group in grouped(trials_of(tested))]
    there = {name for group in groups for trial in group.trials for name, _ in trial.metrics}
    if lacking := [name for name in options.metrics or () if name not in there]:
        raise BadInput(f"--metrics: no run has '{lacking[0]}', but {', '.join(sorted(there))}")
    metrics = metrics_among(groups, options.metrics or (TITLES if options.format == "csv" else COLUMNS))
    if options.at:
        metrics = [metric for metric in metrics if metric[1] in (None, *options.at)]
    if not metrics:
        raise BadInput(f"--at: no run has a metric at {options.at}")
    text = WRITERS[options.format](groups, metrics)
    if options.out is None:
        print(text, end="")
    else:
        write_whole(options.out, lambda path: path.write_text(text, encoding="utf-8", newline=""))


# -------------------------------------------------------------------------------------------------- tables


def cell(group: Group, metric: Metric) -> str:
    """Mean and standard deviation of a group, in words as short as they can be."""
    values, digits = group.values(metric), 1 if metric[0] == "seconds" else 3
    if not values:
        return "-"
    text = " ± ".join(f"{each:.{digits}f}" for each in spread(values) if each is not None)
    return f"{text} (n = {len(values)})" if len(values) < len(group.trials) else text


def published_of(group: Group) -> dict[Metric, float]:
    """What is published of the same system, dataset, bits and protocol."""
    found = group.trials[-1].log.result.get("published") or {}
    return {("mAP", int(k)): value for k, value in found.items()}


def tables(write: Callable, groups: list[Group], metrics: list[Metric]) -> str:
    """A table for every dataset, of the metrics that its runs have, by a function of ``formats.tables``."""
    texts = []
    for dataset in sorted({group.kind.dataset for group in groups}):
        here = [group for group in groups if group.kind.dataset == dataset]
        texts.append(
            write(*table(here, [metric for metric in metrics if any(g.values(metric) for g in here)]))
        )
    return "\n".join(texts)


def table(groups: list[Group], metrics: list[Metric]) -> tuple[str, list[list[str]], int]:
    """The table of a dataset: its caption, its lines of cells, the header first, how many columns are text.

    What all groups share stands in the caption.
    """
    facts = {
        "protocol": [group.kind.protocol for group in groups],
        "precision": [group.kind.precision for group in groups],
        "system": [" ".join(filter(None, group.kind[2:4])) for group in groups],
        "bits": [str(group.kind.bits or "real") for group in groups],
        "settings": [group.settings for group in groups],
        "commit": [group.commits for group in groups],
    }
    shared = [name for name in ("protocol", "precision", "settings", "commit")
              if len(set(facts[name])) == 1]  # fmt: skip
    said = [f"{name} {facts[name][0]}" for name in shared if facts[name][0]]
    caption = ", ".join([f"dataset {groups[0].kind.dataset}", *said])
    chosen = {(system, "" if "protocol" in shared else f", protocol {group.kind.protocol}"): group.shared
              for system, group in zip(facts["system"], groups, strict=True)}  # fmt: skip
    for (system, protocol), settings in chosen.items():
        which = f"settings of {system}{protocol} that are not the published ones"
        caption += f"; {which}: {settings}" if settings else ""
    caption += "; mean ± standard deviation over seeds"
    texts = [name for name in facts if name not in shared]
    lines = [[*texts, "seeds", *(TITLES[name].format(at) for name, at in metrics)]]
    for row, group in enumerate(groups):
        own = {name: facts[name][row] for name in texts}
        lines.append([*own.values(), str(len(group.trials)), *(cell(group, metric) for metric in metrics)])
        if published := published_of(group):
            own |= {name: "-" for name in ("settings", "commit") if name in own}
            own["system"] += ", published"
            values = (f"{published[metric]:.3f}" if metric in published else "-" for metric in metrics)
            lines.append([*own.values(), "-", *values])
    return caption, lines, len(texts)


def comma_separated(groups: list[Group], metrics: list[Metric]) -> str:
    """Metrics of every group, one a line, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("metric", "at", "n", "mean", "sd", "published")
    writer.writerow([*Kind._fields, "settings", *numbers, "seeds", "commit"])
    for group in groups:
        settings = "; ".join(filter(None, (group.settings, group.shared)))
        who = [*group.kind._replace(bits=group.kind.bits or ""), settings]
        published = published_of(group)
        for metric in metrics:
            if not (values := group.values(metric)):
                continue
            seeds = " ".join(sorted(str(trial.seed) for trial in group.trials if metric in trial.metrics))
            numbers = (*metric, len(values), *spread(values), published.get(metric))  # None: left empty
            writer.writerow([*who, *numbers, seeds, group.commits])
    return text.getvalue()


WRITERS = {
    "markdown": partial(tables, markdown),
    "latex": partial(tables, latex),
    "csv": comma_separated,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
