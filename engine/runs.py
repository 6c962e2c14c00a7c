"""Runs and their logs: numbers that no two share, ``log/<n>.txt``, ``log/<n>.jsonl``, what is unfinished.

One start of the program is a *launch* of one or more runs in a row (a pipeline takes one number for each of
its stages). The first line of its first run's JSON lines, written whole or not at all, reserves all numbers
and keeps its settings; ``weight/<n>.reserved`` keeps them from launches that log elsewhere, until the launch
has ended. A launch has ended when the log of its last run has an ``end``.
"""

import contextlib
import fcntl
import json
import os
import re
import shlex
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from engine import ranks
from engine.checkpoint import check_ours, not_its_own, training_features
from engine.settings import Settings
from formats.files import (
    BadInput,
    check_folder,
    clean_temporaries,
    expand,
    flock,
    locked_folder,
    write_whole,
)
from formats.weights import read_checkpoint


@dataclass
class Launch:
    """The runs that one start of the program takes; reserved on disk when its first run starts."""

    settings: Settings
    stages: tuple[str, ...]
    options: dict[str, Any]  # of the command line, as they were given
    numbers: tuple[int, ...] = ()  # empty: not reserved yet
    id: str | None = None  # also in its checkpoints; None in launches of version 1.0.0
    lock: IO | None = None  # held while a process works on the launch; of several ranks, by rank 0

    def __getstate__(self) -> dict[str, Any]:
        """What the other ranks hear of it."""
        return {**self.__dict__, "lock": None}

    @property
    def log_dir(self) -> Path:
        """Where the logs are."""
        return expand(self.settings.result_log_dir)

    @property
    def weight_dir(self) -> Path:
        """Where the checkpoints are."""
        return expand(self.settings.result_weight_dir)

    @property
    def numbered(self) -> list[Path]:
        """The folders of files that bear a run's number: no other run's are to be replaced."""
        results = getattr(self.settings, "result_dir", None)  # not all stages leave results
        folders = [self.weight_dir, *([expand(results)] if results else [])]
        return [folder for folder in folders if folder.is_dir()]

    @property
    def runs(self) -> list["Run"]:
        """One for every stage."""
        return [Run(self, place) for place in range(len(self.stages))]

    def reserve(self) -> None:
        """Take the next free numbers and write the settings down, whole or not at all.

        Raises:
            BadInput: the log or the weight folder cannot be written to.
        """
        self.numbers, self.id = self.write_reservation()

    @ranks.on_first
    def write_reservation(self) -> tuple[tuple[int, ...], str]:
        """The numbers and the name of the launch, as they now stand in both folders."""
        for folder in (self.log_dir, self.weight_dir):
            check_folder(folder)
        with locked_folder(self.log_dir):
            self.weight_dir.mkdir(parents=True, exist_ok=True)
            clean_temporaries(self.log_dir)
            clean_temporaries(self.weight_dir)
            self.numbers, self.id = self.take_numbers(), uuid.uuid4().hex
            record = {"event": "reserved", "time": now(), "runs": self.numbers, "stages": self.stages,
                      "launch": self.id, "options": self.options, "settings": self.settings.as_dict(),
                      "dataset": self.settings.config and self.settings.config.facts}  # fmt: skip

            def begin(path: Path) -> None:
                path.write_text(json.dumps(record) + "\n", encoding="utf-8")
                self.lock = take_lock(
                    path
                )  # before others can see the file; it stays locked under its new name

            write_whole(jsonl(self.log_dir, self.numbers[0]), begin)
        return self.numbers, self.id

    def take_numbers(self) -> tuple[int, ...]:
        """The next numbers that are free in both folders, marked as taken in the weight folder."""
        used = [int(path.stem) for path in self.log_dir.glob("*.jsonl") if path.stem.isdecimal()]
        used += [number for record in read_records(self.log_dir) for number in record["runs"]]
        while True:
            names = [path.name for folder in self.numbered for path in folder.iterdir()]
            used += [int(match[0]) for name in names if (match := re.match(r"[0-9]+", name))]
            first = max(used, default=0) + 1
            numbers = tuple(range(first, first + len(self.stages)))
            try:
                for number in numbers:
                    with open(self.reservation(number), "x", encoding="utf-8") as file:
                        file.write(str(jsonl(self.log_dir, first).absolute()))
                return numbers
            except FileExistsError:  # a launch that logs elsewhere was faster
                used.append(number)
            except OSError as error:
                raise BadInput(f"{self.weight_dir}: cannot be written to: {error.strerror}") from None

    def release(self) -> None:
        """Give the weight folder's reservations back, but none that another launch has made since."""
        own = str(jsonl(self.log_dir, self.numbers[0]).absolute())
        for path in map(self.reservation, self.numbers):
            with contextlib.suppress(FileNotFoundError):
                if path.read_text(encoding="utf-8") == own:
                    path.unlink()

    def reservation(self, number: int) -> Path:
        """What keeps a number in the weight folder until the launch has ended."""
        return self.weight_dir / f"{number}.reserved"


def take_lock(path: Path) -> IO | None:
    """Lock a file for this process; None if another one holds it, or if it is another user's."""
    try:
        file = open(path, "r+")  # noqa: SIM115 - open, and with it locked, until the process ends
    except PermissionError:
        return None
    if not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
        file.close()
        return None
    return file


def jsonl(log_dir: Path, number: int) -> Path:
    """The JSON lines of a run."""
    return log_dir / f"{number}.jsonl"


def has_ended(path: Path) -> bool:
    """Whether a run's log holds its ``end``."""
    if not path.exists():
        return False
    last = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").rpartition("\n")[2]
    return last.startswith('{"event": "end"') and last.endswith("}")


def read_records(log_dir: Path) -> list[dict]:
    """What every launch of a folder reserved, oldest first; files that are no such log are passed over."""
    records = []
    for path in log_dir.glob("*.jsonl"):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            with open(path, encoding="utf-8", errors="replace") as file:
                record = json.loads(file.readline())
            if is_record(record) and path == jsonl(log_dir, record["runs"][0]):
                records.append(record)
    return sorted(records, key=lambda record: record["runs"])


def is_record(record: Any) -> bool:
    """Whether this is the first line of a launch."""
    if not isinstance(record, dict) or record.get("event") != "reserved":
        return False
    runs, stages = record.get("runs"), record.get("stages")
    lists = isinstance(runs, list) and isinstance(stages, list) and len(runs) == len(stages) > 0
    parts = (record.get("options"), record.get("settings"), record.get("dataset") or {})
    objects = all(isinstance(part, dict) for part in parts)
    if not (lists and objects and all(type(n) is int for n in runs) and all(type(s) is str for s in stages)):
        return False
    return all(isinstance(record["settings"].get(key), str) for key in ("stage", "result_weight_dir"))


def find_unfinished(log_dir: Path, number: int | None = None) -> tuple[dict, IO] | None:
    """The newest launch that has not ended and that no process works on, or the one with run ``number``.

    Returns:
        What it reserved, and its lock; None if there is none and no number was asked for.

    Raises:
        BadInput: run ``number`` does not exist, has finished, or is under way.
    """
    records = [record for record in read_records(log_dir) if number is None or number in record["runs"]]
    problem = "does not exist"
    for record in reversed(records):
        last = jsonl(log_dir, record["runs"][-1])
        problem = "has finished"
        if not has_ended(last):
            problem = "is under way in another process, or another user's"
            if lock := take_lock(jsonl(log_dir, record["runs"][0])):
                if not has_ended(last):  # nor while its lock was waited for
                    return record, lock
                lock.close()
    if number is not None:
        raise BadInput(f"--resume {number}: run {number} {problem} (logs in {log_dir})")
    return None


def resume_command(number: int, settings: Settings) -> str:
    """The command that goes on with a run, by the script that is running."""
    script = sys.argv[0] if sys.argv[0].endswith(".py") else "run.py"
    folder = settings.result_log_dir
    where = "" if folder == Settings.result_log_dir else f" --result_log_dir {shlex.quote(folder)}"
    return f"python {shlex.quote(script)} --resume {number}{where}"


def now() -> str:
    """The time as the log writes it."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


class Run:
    """One run of one stage: its number, where its checkpoints go, and its log."""

    def __init__(self, launch: Launch, place: int):
        self.launch, self.place = launch, place
        self.stage, self.settings = launch.stages[place], launch.settings

    @property
    def number(self) -> int:
        """Of the run."""
        return self.launch.numbers[self.place]

    @property
    def jsonl(self) -> Path:
        """The log as JSON lines."""
        return jsonl(self.launch.log_dir, self.number)

    @property
    def txt(self) -> Path:
        """The log as the terminal showed it."""
        return self.jsonl.with_suffix(".txt")

    @property
    def weights(self) -> Path:
        """The checkpoint of the finished stage."""
        return self.launch.weight_dir / f"{self.number}_{self.settings.hashcode_size}.pth"

    @property
    def part(self) -> Path:
        """The checkpoint of the stage under way."""
        return self.weights.with_suffix(".part.pth")

    def owns(self, checkpoint: Mapping) -> bool:
        """Whether a checkpoint is of this run, and not of another one under the same number."""
        return checkpoint.get("stage") == self.stage and checkpoint.get("launch") == self.launch.id

    @ranks.on_first
    def is_trained(self) -> bool:
        """Whether the stage has left its finished checkpoint, so that a resumed launch goes on to the next.

        Raises:
            BadInput: the checkpoint in its place is another run's, or its features have been replaced since.
        """
        if not self.launch.numbers or not self.weights.exists():
            return False
        content = read_checkpoint(self.weights, whole=False)
        if not self.owns(content):
            raise BadInput(f"{self.weights}: of another run with the same number; move it away, then resume")
        check_ours(content, self.weights)
        features = training_features(self.settings)
        if problems := not_its_own(content, self.settings, features, to_train=True):
            raise BadInput(f"{self.weights}: {'; '.join(problems)}")
        self.part.unlink(missing_ok=True)  # killed between the two
        return True

    @ranks.on_first
    def is_tested(self) -> bool:
        """Whether the log holds the result and the end of a test."""
        return bool(self.launch.numbers and has_ended(self.jsonl) and self.find_event("result"))

    def start(self, note: str = "", **values: Any) -> None:
        """Take the number and begin the log; when resuming without a checkpoint, begin it again."""
        if not self.launch.numbers:
            self.launch.reserve()
        self.begin_log(note, values)

    @ranks.on_first
    def begin_log(self, note: str, values: Mapping[str, Any]) -> None:
        """Write what stands on top of both logs, unless a checkpoint knows how to go on with them."""
        if self.part.exists():
            return
        reserved = self.jsonl.read_bytes().splitlines(keepends=True)[:1] if self.place == 0 else []
        self.rewind({self.jsonl.name: sum(map(len, reserved))})
        several = {"ranks": ranks.n_ranks()} if ranks.n_ranks() > 1 else {}
        self.event("start", stage=self.stage, run=self.number, settings=self.settings.as_dict(),
                   seed=self.settings.seed, **several, **values)  # fmt: skip
        self.say(
            f"run {self.number}: {self.stage} on {self.settings.source}, "
            f"seed {self.settings.seed}, device {values['device']}"
            + (f" of each of {ranks.n_ranks()} ranks" if several else "")
        )
        if self.place == 0:
            logs = dict.fromkeys(str(run.txt) for run in (self, self.launch.runs[-1]))
            self.say(f"in {Path.cwd()}, log {' to '.join(logs)}; if it is interrupted: "
                     f"{resume_command(self.number, self.settings)}")  # fmt: skip
        if note:
            self.say(note)

    @ranks.on_first
    def started_with(self, key: str) -> Any:
        """What the ``start`` of this run's log says of ``key``, for a resumed run; None if there is none."""
        return (self.find_event("start") or {}).get(key)

    def find_event(self, name: str) -> dict | None:
        """The first event of a name in this run's log."""
        if not self.launch.numbers or not self.jsonl.exists():
            return None
        for line in self.jsonl.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):  # half a line, or none of ours
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == name:
                    return event
        return None

    @ranks.on_first
    def end(self) -> Path:
        """Finish the log, if that is not yet done, and return the stage's checkpoint."""
        if self.number == self.launch.numbers[-1]:
            self.launch.release()
        if not has_ended(self.jsonl):
            content = self.jsonl.read_bytes()
            os.truncate(self.jsonl, content.rfind(b"\n") + 1)  # what a kill may have left of a line
            self.event("end", stage=self.stage, run=self.number)
        return self.weights

    def event(self, event: str, **values: Any) -> dict[str, Any]:
        """Append one line to the JSON lines, and return it; rank 0 alone writes, here and below."""
        content = {"event": event, "time": now(), **values}
        self.append(self.jsonl, json.dumps(content))
        return content

    def say(self, text: str) -> None:
        """Show a text on the terminal and append it to the log."""
        with tqdm.external_write_mode():
            print(text, flush=True)
        self.append(self.txt, text)

    def append(self, path: Path, text: str) -> None:
        """Append a line to a file and have it on the disk."""
        if ranks.rank():
            return
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror}") from None

    def log_sizes(self) -> dict[str, int]:
        """How long both logs are: a checkpoint keeps it, and resuming goes back to it."""
        return {path.name: path.stat().st_size if path.exists() else 0 for path in (self.jsonl, self.txt)}

    def rewind(self, sizes: Mapping[str, int]) -> None:
        """Cut both logs back to ``sizes``, by name, else to nothing: what came later will be done again.

        Raises:
            BadInput: the JSON lines are shorter than that.
        """
        if ranks.rank():
            return
        found = self.log_sizes()
        for path in (self.jsonl, self.txt):
            size = sizes.get(path.name, 0)
            if found[path.name] > size:
                os.truncate(path, size)
            elif found[path.name] < size and path == self.jsonl:  # a text that was deleted is no loss
                raise BadInput(f"{path}: expected {size} bytes to go on from, found {found[path.name]}")
