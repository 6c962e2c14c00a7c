"""Logs read back, for the commands that show results: plot, gallery, compare.

A run's log is ``log/<n>.jsonl``, one event a line: ``reserved`` (in the first log of a launch), ``start``,
``epoch`` (losses), ``evaluation`` (mAP while it trains, where ``eval_every`` asks for it), ``result`` (of a
test), ``end``. It may still be written, its run may have failed, or it may be older than some of its keys:
what is there is read, what is missing the commands name.
"""

import contextlib
import json
import numbers
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.runs import is_record
from formats.files import MANY, BadInput, expand

# Of a result: by the cut K, by themselves, by the radius from 0 to b.
BY_K = ("mAP", "mAP_tie_expected", "mAP_relevant", "mAP_retrieved",
        "precision", "recall", "ceiling", "chance")  # fmt: skip
NUMBERS = ("mAP_whole", "precision_radius_2")
BY_RADIUS = ("precision", "recall", "pairs", "relevant_pairs")
# What the keys of events are that the commands rely on; older logs lack those that may be None.
START = {"stage": str | None, "settings": dict | None}
EPOCH = {"losses": dict, "epoch": int, "lr": numbers.Real | None, "videos_per_second": numbers.Real | None}
EVALUATION = {"mAP": dict, "epoch": int}
RESULT = {
    "mAP": dict,
    "dataset": str,
    "bits": int | None,  # None, too, for real values
    "system": str | None,
    "method": str | None,
    "seed": int | None,
    "origin": str | None,
    "time": str | None,
    "codes": dict | None,
    **dict.fromkeys(NUMBERS, numbers.Real | None),
}


@dataclass
class Log:
    """What the log of one run says so far."""

    path: Path
    reserved: dict[str, Any] = field(default_factory=dict)  # all runs of its launch, if it is the first
    start: dict[str, Any] = field(default_factory=dict)  # stage, settings, seed, versions, commit
    epochs: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    ended: bool = False

    @property
    def bits(self) -> int | None:
        """Of the codes; None: real values."""
        return self.result.get("bits") if self.result else self.setting("hashcode_size")

    def setting(self, name: str) -> Any:
        """A setting of the run by its dotted name; None where the log does not say."""
        value: Any = self.start.get("settings")
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_logs(names: Sequence[str]) -> list[Log]:
    """The logs of files and folders, each once, in the order of the names, within a folder by number.

    Raises:
        BadInput: a name is neither a log nor a folder with logs, or a log is damaged.
    """
    paths = [path for name in names for path in find_logs(expand(name))]
    return [read_log(path) for path in {path.resolve(): path for path in paths}.values()]


def find_logs(path: Path) -> list[Path]:
    """A file itself, or the logs in a folder by number.

    Raises:
        BadInput: there is none.
    """
    if not path.is_dir():
        if not path.exists():
            raise BadInput(f"{path}: no such log; runs leave theirs as log/<n>.jsonl")
        return [path.with_suffix(".jsonl") if path.suffix == ".txt" else path]
    found = [each for each in path.glob("*.jsonl") if each.stem.isdecimal()]
    if not found:
        raise BadInput(f"{path}: no log in this folder; runs leave theirs as <n>.jsonl")
    return sorted(found, key=lambda each: int(each.stem))


def no_result(logs: Sequence[Log]) -> str:
    """What logs are of where the result of a test was expected, and where there is one beside them."""
    runs = [f"{log.path} is of {log.start.get('stage') or 'a run that did not begin'}" for log in logs[:MANY]]
    more = f" and {len(logs) - MANY} more" if len(logs) > MANY else ""
    where = "stages test, bth.test and tools.baseline have one"
    with contextlib.suppress(BadInput):  # a damaged log is none
        found = [path for path in find_logs(logs[0].path.parent) if read_log(path).result]
        where = f"the newest one there with a result is {found[-1]}" if found else where
    return f"no result of a test: {', '.join(runs)}{more}; {where}"


def read_log(path: Path) -> Log:
    """One log; half a line at its end is one that is being written.

    Raises:
        BadInput: it is no log, or an event of it is not as a run writes it.
    """
    log = Log(path)
    for event in events(path):
        match event.get("event"):
            case "reserved":
                log.reserved = event
            case "start":
                log = Log(path, log.reserved, checked(event, path, START))
            case "epoch":
                log.epochs.append(checked(event, path, EPOCH))
            case "evaluation":
                log.evaluations.append(checked(event, path, EVALUATION))
            case "result":
                log.result = checked(event, path, RESULT)
            case "end":
                log.ended = True
    return log


def events(path: Path) -> Iterator[dict]:
    """The events of a log.

    Raises:
        BadInput: the file cannot be read, or a line that is not its last one is no event.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict) and "event" in event:
            yield event
        elif number < len(lines) or line.endswith("\n"):
            raise BadInput(f"{path}: line {number} is no event of a run's log")


def checked(event: dict, path: Path, needed: dict[str, Any]) -> dict:
    """An event whose numbers are where they belong.

    Raises:
        BadInput: they are not.
    """
    losses, by_radius, codes = event.get("losses", {}), event.get("by_radius", {}), event.get("codes")
    by_k = {key: event.get(key, {}) for key in (*BY_K, "published")}
    wrong = [key for key, kind in needed.items() if not isinstance(event.get(key), kind)]
    wrong += [key for key, table in by_k.items() if not is_table(table) or not all(map(str.isdecimal, table))]
    if not isinstance(losses, dict) or not all(map(is_table, losses.values())):
        wrong.append("losses")
    if not isinstance(by_radius, dict) or not all(map(is_numbers, by_radius.values())):
        wrong.append("by_radius")
    if event.get("mAP") == {}:
        wrong.append("mAP")
    if isinstance(codes, dict) and not {type(codes.get(key)) for key in ("database", "query")} == {str}:
        wrong.append("codes")
    if wrong:
        where = f"'{wrong[0]}' of an event '{event['event']}'"
        raise BadInput(f"{path}: damaged: {where} is not as a run writes it")
    return event


def is_table(value: Any) -> bool:
    """Whether this is numbers by name."""
    return isinstance(value, dict) and is_numbers(list(value.values()))


def is_numbers(value: Any) -> bool:
    """Whether this is a list of numbers."""
    return isinstance(value, list) and all(map(is_number, value))


def is_number(value: Any) -> bool:
    """Whether this is a number."""
    return isinstance(value, numbers.Real)


class History:
    """The logs of some folders, to find those of a network's training.

    These are the log whose run left the checkpoint, ``<result_weight_dir>/<n>_<bits>.pth``, then the one
    whose run left the checkpoint that this one started from, and so on; a run that names none went on from
    the run before it in its launch, if there was one.
    """

    def __init__(self, folders: Iterable[Path]):
        self.by_checkpoint: dict[str, Log] = {}
        self.launches: dict[tuple[Path, int], list[int]] = {}  # all runs of a launch, by folder and run
        for folder in folders:
            with contextlib.suppress(BadInput):  # no log there has its number
                for path in find_logs(folder):
                    with contextlib.suppress(BadInput):  # a damaged one is as good as none
                        self.add(read_log(path))

    def add(self, log: Log) -> None:
        """Take a log into account."""
        runs = log.reserved["runs"] if is_record(log.reserved) else []
        self.launches |= {(log.path.parent, run): runs for run in runs}
        self.by_checkpoint[checkpoint(log, log.start.get("run"))] = log

    def training(self, weights: str) -> list[Log] | None:
        """The logs of the training that ended with a checkpoint, first stage first; None: one is missing."""
        found: list[Log] = []
        while weights:
            log = self.by_checkpoint.get(os.path.abspath(expand(weights)))
            if log is None or log in found:
                return None
            found.insert(0, log)
            weights = log.start.get("weights") or self.before(log)
        return found

    def before(self, log: Log) -> str | None:
        """The checkpoint that the run before this one in its launch leaves, if there is one."""
        run = log.start.get("run")
        earlier = [each for each in self.launches.get((log.path.parent, run), []) if each < run]
        return checkpoint(log, max(earlier)) if earlier else None


def checkpoint(log: Log, run: int) -> str:
    """Where a run of the launch of this log leaves its network."""
    folder = expand(str(log.setting("result_weight_dir")))
    return os.path.abspath(folder / f"{run}_{log.setting('hashcode_size')}.pth")
