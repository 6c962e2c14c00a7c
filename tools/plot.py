"""``python -m tools.plot LOG... --out FILE``: figures of runs, the numbers behind them, TensorBoard's files.

LOG is a log/<n>.jsonl or a folder of them; a run may still go on, or have failed. The figures:

losses            terms of the loss by pass and epoch, and mAP@K meanwhile where there are evaluations
map               mAP@K over K, between chance and the ceiling
precision-recall  precision and recall within every Hamming radius
distances         Hamming distances of relevant and of other pairs
bits              how balanced every bit is, and how much bits repeat each other
codes             the codes of the database in the plane, by class
"""

import argparse
import contextlib
import csv
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from engine.launch import Parser, exit_status
from formats.files import BadInput, expand, optional_package, some, write_whole
from tools.figures import FIGURES, FORMATS, draw
from tools.logs import BY_K, Log, read_logs
from tools.series import Row, code_map
from tools.trials import Group, grouped, newest, note, trials_of

EVENTS = "events.out.tfevents.wsch"  # a run's one event file; TensorBoard knows such by ``tfevents``


def main(arguments: list[str]) -> int:
    """Draw as the command line says; the exit status."""
    parser = Parser(prog="python -m tools.plot", description=__doc__.partition("\n\n")[2],
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("logs", nargs="+", metavar="LOG", help="log/<n>.jsonl, or a folder of them")
    parser.add_argument("--out", type=expand, metavar="FILE", help=f"the picture: {', '.join(FORMATS)}")
    parser.add_argument("--figure", choices=FIGURES,
                        help="which (default: map if there is a result, else losses)")  # fmt: skip
    parser.add_argument("--bits", nargs="+", type=int, metavar="N",
                        help="runs with codes of these lengths, and real values, alone")  # fmt: skip
    parser.add_argument("--method", choices=("pca", "tsne"), help="of the figure codes (default: pca)")
    parser.add_argument("--data", type=expand, metavar="FILE.csv", help="the numbers behind the figure")
    parser.add_argument("--tensorboard", type=expand, metavar="DIR",
                        help="all numbers of every log, as files for TensorBoard")  # fmt: skip
    return exit_status(lambda: plot(parser.parse_args(arguments)))


def plot(options: argparse.Namespace) -> None:
    """Write what the options ask for, every file whole or not at all.

    Raises:
        BadInput: an option or a log cannot be used, no log holds what the figure shows, a package is missing.
    """
    if not (options.out or options.data or options.tensorboard):
        raise BadInput("expected --out FILE, --data FILE.csv or --tensorboard DIR")
    if options.out and options.out.suffix.lower() not in FORMATS:
        raise BadInput(f"--out: expected a name that ends in {', '.join(FORMATS)}, found {options.out.name}")
    logs = [log for log in read_logs(options.logs) if not options.bits or log.bits in (None, *options.bits)]
    if not logs:
        raise BadInput(f"--bits: no run of {options.bits} bits in {', '.join(options.logs)}")
    name = options.figure or ("map" if any(log.result for log in logs) else "losses")
    if options.method and name != "codes":
        raise BadInput(f"--method: expected with --figure codes, found with {name}")
    if options.out or options.data:
        shown = choose(name, logs)
        rows = code_map(shown, options.method) if options.method else FIGURES[name].numbers(shown)
        used = [trial.log for group in shown for trial in group.trials]
        if not rows:
            raise BadInput(f"{name}: no numbers in {some(str(log.path) for log in used)}")
        going = [str(log.path) for log in used if not log.ended]
        said = f"{name} of {len(used)} of {len(logs)} logs{f'; not ended: {some(going)}' if going else ''}"
        if options.out:
            write_whole(options.out, partial(draw, name, rows, options.out.suffix.lower()))
            print(f"{options.out}: {said}")
        if options.data:
            write_whole(options.data, partial(write_csv, rows))
            print(f"{options.data}: {said}")
    if options.tensorboard:
        write_tensorboard(logs, options.tensorboard)


def choose(name: str, logs: Sequence[Log]) -> list[Group]:
    """The runs that a figure shows; what it leaves out and why is told.

    Raises:
        BadInput: it can show none, or not so many.
    """
    figure, reasons = FIGURES[name], {}
    for log in logs:
        reasons.setdefault(figure.lacks(log), []).append(log)
    shown = reasons.pop("", [])
    left_out = [f"{some(str(log.path) for log in each)}: {reason}" for reason, each in reasons.items()]
    if not shown:
        raise BadInput(f"{name}: nothing to show: {'; '.join(left_out)}")
    if figure.most and len(shown) > figure.most:
        raise BadInput(f"{name}: shows {figure.most} runs at most, found {len(shown)}; name fewer logs")
    if reasons:
        others = "; ".join(f"{len(each)}: {reason}" for reason, each in reasons.items())
        note(f"of {len(logs)} logs, {len(shown)} are shown; left out {others}")
    groups = grouped(trials_of(shown))
    return [newest(group) for group in groups] if figure.averaged else groups


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Rows below a header; what is not defined is left empty."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


# ---------------------------------------------------------------------------------------------- TensorBoard


def write_tensorboard(logs: Sequence[Log], folder: Path) -> None:
    """Write the event file of every log, in place of the one from before.

    A run's folder is named by its log: ``log-3`` for ``log/3.jsonl``, by the path from the working directory
    or, outside of it, from the root.

    Raises:
        BadInput: a file cannot be written, or the package is missing.
    """
    writer = optional_package("torch.utils.tensorboard", "tensorboard", "plot").SummaryWriter
    for log in logs:
        path = log.path.resolve().with_suffix("")
        with contextlib.suppress(ValueError):
            path = path.relative_to(Path.cwd())
        name = "-".join(path.parts).lstrip("/-")
        write_whole(folder / name / EVENTS, partial(write_events, log, writer))
    print(f"{folder}: {len(logs)} logs; to see them: tensorboard --logdir {folder}")


def write_events(log: Log, writer: Callable, path: Path) -> None:
    """One log as an event file: scalars by epoch, the result as of epoch 0, the settings as text."""
    with tempfile.TemporaryDirectory() as folder:  # the library names its file itself
        with writer(folder) as board:
            facts = log.start | (log.start.get("settings") or {})
            table = [f"| {key} | {facts[key]} |" for key in facts if key not in ("event", "settings")]
            board.add_text("settings", "\n".join(["| name | value |", "| --- | --- |", *table]))
            for event in log.epochs:
                for part, terms in event["losses"].items():
                    add_scalars(board, f"loss/{part}/", terms, event, event["epoch"])
                rates = {key: event[key] for key in ("lr", "videos_per_second") if key in event}
                add_scalars(board, "", rates, event, event["epoch"])
            for event in log.evaluations:
                add_scalars(board, "evaluation/mAP@", event["mAP"], event, event["epoch"])
            for key in BY_K if log.result else ():
                add_scalars(board, f"result/{key}@", log.result.get(key, {}), log.result, 0)
        (written,) = Path(folder).iterdir()
        shutil.copyfile(written, path)


def add_scalars(board, prefix: str, scalars: Mapping[str, float], event: Row, step: int) -> None:
    """Numbers of an event, at the time at which it happened, as far as the log says it."""
    try:
        when = datetime.fromisoformat(event["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        when = None
    for name, value in scalars.items():
        board.add_scalar(f"{prefix}{name}", value, step, walltime=when)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
