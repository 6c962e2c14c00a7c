"""Logs read back, for the commands that show results: plot, gallery, compare.

A run's log is ``log/<n>.jsonl``, one event a line: ``start``, ``epoch`` (losses), ``evaluation`` (mAP while
it trains, where ``eval_every`` asks for it), ``result`` (of a test), ``end``. It may still be written, its
run may have failed, or it may be older than some of its keys: what is there is read, what is missing the
commands name.
"""

import json
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from formats.files import BadInput, expand

# Of a result: by the cut K, by the radius from 0 to b.
BY_K = (
    "mAP",
    "mAP_tie_expected",
    "mAP_relevant",
    "mAP_retrieved",
    "precision",
    "recall",
    "ceiling",
    "chance",
)
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
}


@dataclass
class Log:
    """What the log of one run says so far."""

    path: Path
    start: dict[str, Any] = field(default_factory=dict)  # stage, settings, seed, versions, commit
    epochs: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    ended: bool = False

    def setting(self, name: str) -> Any:
        """A setting of the run by its dotted name; None where the log does not say."""
        value: Any = self.start.get("settings")
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_logs(names: Sequence[str]) -> list[Log]:
    """The logs of files and folders, in the order of the names, within a folder by number.

    Raises:
        BadInput: a name is neither a log nor a folder with logs, or a log is damaged.
    """
    return [read_log(path) for name in names for path in find_logs(expand(name))]


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


def read_log(path: Path) -> Log:
    """One log; half a line at its end is one that is being written.

    Raises:
        BadInput: it is no log, or an event of it is not as a run writes it.
    """
    log = Log(path)
    for event in events(path):
        match event.get("event"):
            case "start":
                log = Log(path, checked(event, path, START))
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
    by_radius = event.get("by_radius", {})
    tables = {key: event.get(key, {}) for key in BY_K}
    tables |= dict(event["losses"].items()) if isinstance(event.get("losses"), dict) else {}
    wrong = [key for key, kind in needed.items() if not isinstance(event.get(key), kind)]
    wrong += [key for key, table in tables.items() if not is_table(table, by_k=key in BY_K)]
    if not isinstance(by_radius, dict) or not all(is_numbers(each) for each in by_radius.values()):
        wrong.append("by_radius")
    if wrong:
        where = f"'{wrong[0]}' of an event '{event['event']}'"
        raise BadInput(f"{path}: damaged: {where} is not as a run writes it")
    return event


def is_table(value: Any, by_k: bool) -> bool:
    """Whether this is numbers by name, or by cut K."""
    named = isinstance(value, dict) and is_numbers(list(value.values()))
    return named and (not by_k or all(key.isdecimal() for key in value))


def is_numbers(value: Any) -> bool:
    """Whether this is a list of numbers."""
    return isinstance(value, list) and all(isinstance(each, numbers.Real) for each in value)
