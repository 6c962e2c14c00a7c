"""The command line: options over the form of run.py, the choice of the stage, resuming, one-line errors."""

import argparse
import contextlib
import importlib
import io
import os
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import Field
from typing import Any

import torch

from engine import ranks
from engine.demo import make_demo
from engine.device import STOP, Interrupted
from engine.runs import Launch, find_unfinished, jsonl, resume_command
from engine.settings import Settings, differences, fields, flatten, show, suggestions
from engine.systems import System, all_of_them, resolve, stage_names, system_of
from formats.dataset import FILE_KEYS
from formats.files import BadInput, clean_temporaries, expand, unknown_keys


def launch(train_model: Callable, form: Mapping[str, Any], arguments: list[str]) -> int:
    """Run a stage, or the one that ``--stage`` or ``--resume`` names.

    Args:
        train_model: the entry point of the stage that run.py imported.
        form: the settings on top of run.py; ``None`` = what the dataset JSON says.
        arguments: of the command line.

    Returns:
        The exit status: 0 done, 1 another rank was lost, 2 bad input, 130 or 143 stopped by SIGINT or
        SIGTERM.
    """
    begun: list[Launch] = []

    def work() -> None:
        stage = {"stage": form.get("stage") or train_model.__module__}
        launched = begin({**form, **stage}, arguments)
        begun.append(launched)
        importlib.import_module(launched.settings.stage).train_model(launched.settings, *launched.runs)

    def how_to_go_on() -> str:
        return how_to_resume(begun[0].numbers[0], begun[0].settings) if begun and begun[0].numbers else ""

    return exit_status(work, how_to_go_on)


def exit_status(work: Callable[[], None], how_to_go_on: Callable[[], str] = str) -> int:
    """Do the work of a command; what a file, a setting or a signal causes ends in one line.

    Args:
        work: what to do.
        how_to_go_on: what to tell when a signal stops it, or a rank is lost; empty: nothing was begun.

    Returns:
        0 done, 1 another rank was lost, 2 bad input, 130 or 143 stopped by SIGINT or SIGTERM.
    """
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - closed: progress bars need one
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show costs no table
            stream.reconfigure(errors="backslashreplace")
    with STOP:
        try:
            with ranks.joined():
                work()
            return 0
        except (BadInput, OSError) as error:  # a folder removed while running, a name too long, ...
            ranks.say_once(f"error: {' '.join(str(error).split())}")
            return 2
        except (MemoryError, RuntimeError) as error:
            if not is_allocation(error):
                raise
            ranks.say_once("error: out of memory; a smaller batch_size needs less, and 'memory' disk")
            return 2
        except ranks.RankLost as error:
            ranks.say_once(f"error: {error}; {how_to_go_on() or 'nothing was begun'}")
            return 1
        except (Interrupted, KeyboardInterrupt):
            ranks.say_once(f"stopped; {how_to_go_on() or 'nothing was begun'}")
            return 128 + (STOP.number or 2)


def is_allocation(error: Exception) -> bool:
    """Whether there was too little memory, of a GPU or of the machine."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@ranks.on_first
def begin(form: Mapping[str, Any], arguments: list[str]) -> Launch:
    """A new launch or the one to go on with, and the demo set, if it is on that."""
    first = first_look(arguments)
    launched = (started if first.resume is None else resumed)(form, arguments, first)
    if launched.settings.config is not None:
        make_demo(launched.settings.config)
    return launched


def started(form: Mapping[str, Any], arguments: list[str], first: argparse.Namespace) -> Launch:
    """A new launch; an unfinished one is mentioned."""
    options = parse(arguments, form, system_of(first.stage or form["stage"]))
    settings = resolve(form, options)
    if (log_dir := expand(settings.result_log_dir)).is_dir() and (found := find_unfinished(log_dir)):
        record, lock = found
        lock.close()
        number, stage = record["runs"][0], record["settings"]["stage"]
        print(f"run {number} ({stage}) is unfinished; {how_to_resume(number, settings)}, "
              f"to forget it: delete {jsonl(log_dir, number)}")  # fmt: skip
    return Launch(settings, stages_of(settings), options)


def stages_of(settings: Settings) -> tuple[str, ...]:
    """The stages that a launch runs in turn."""
    return getattr(importlib.import_module(settings.stage), "STAGES", (settings.stage,))


def how_to_resume(number: int, settings: Settings) -> str:
    """How to go on with a run."""
    return f"to go on with it: {resume_command(number, settings)}"


def resumed(form: Mapping[str, Any], arguments: list[str], first: argparse.Namespace) -> Launch:
    """The launch to go on with: its own options again, the same settings, the same dataset.

    Raises:
        BadInput: there is none, or settings or dataset are not those it was started with.
    """
    log_dir = expand(str(first.result_log_dir or form.get("result_log_dir") or Settings.result_log_dir))
    found = find_unfinished(log_dir, first.resume or None)
    if not found:
        raise BadInput(f"--resume: no unfinished run in {log_dir}")
    record, lock = found
    for folder in (log_dir, expand(record["settings"]["result_weight_dir"])):
        clean_temporaries(folder)
    stage = record["settings"]["stage"]
    if first.stage not in (None, stage):
        raise BadInput(f"--resume: run {record['runs'][0]} is of stage {stage}, not {first.stage}")
    system = system_of(stage)
    known = fields(system.settings)
    everyones = {name for each in all_of_them() for name in fields(each.settings)}
    if unknown := record["options"].keys() - everyones:
        raise BadInput(
            f"--resume: run {record['runs'][0]} was started with an unknown option: {min(unknown)}"
        )
    options = {name: value for name, value in record["options"].items() if name in known}
    options |= parse(arguments, form, system)
    settings = resolve({**form, "stage": stage}, options)
    stages = stages_of(settings)
    changed = settings.changes_since(record["settings"])
    changed += differences({"stages": record["stages"]}, {"stages": list(stages)})
    if record.get("dataset") and settings.config:  # logs of older versions lack it
        then, now = (  # files may be moved
            {key: value for key, value in facts.items() if key not in FILE_KEYS}
            for facts in (record["dataset"], settings.config.facts)
        )
        changed += differences(then, now)
    if changed:
        raise BadInput(
            f"--resume: run {record['runs'][0]} was started with other settings: {'; '.join(changed)}"
        )
    runs = tuple(record["runs"])
    return Launch(settings, stages, record["options"], runs, record.get("launch"), lock)


def first_look(arguments: list[str]) -> argparse.Namespace:
    """What decides which other options there are: ``stage``, ``resume`` and the folder of the logs.

    Raises:
        BadInput: one of these lacks its value.
    """
    parser = Parser(prog="python run.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--stage")
    parser.add_argument("--result_log_dir")
    add_resume(parser)
    return parser.parse_known_args(arguments)[0]


def add_resume(parser: argparse.ArgumentParser) -> None:
    """The option ``--resume``: absent, 0 for the newest run, or a number."""
    parser.add_argument("--resume", nargs="?", type=int, const=0, metavar="RUN",
                        help="go on with the newest unfinished run, or with this one")  # fmt: skip


def parse(arguments: list[str], form: Mapping[str, Any], system: System) -> dict[str, Any]:
    """The options of a stage by dotted name; ``--help`` explains them and ends the program.

    Raises:
        BadInput: an option is unknown or lacks its value.
    """
    parser = Parser(
        prog="python run.py",
        usage="python run.py [--resume [RUN]] [--SETTING VALUE ...]",
        description=f"The settings of {system.name}; --stage is one of {', '.join(stage_names())} "
        "(--help explains the system's of --stage).\nEvery setting on top of run.py is an option too; an "
        "option wins over run.py,\nthat over the dataset JSON, that over the default.",
        allow_abbrev=False,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add_resume(parser)
    known = fields(system.settings)
    stated = flatten(form, known, [], "")  # what is wrong with the form, ``resolve`` says
    for name, item in known.items():
        text = f"{item.metadata['description']}\ndefault: {show(stated.get(name, item.default))}"
        parser.add_argument(f"--{name}", metavar=name.rpartition(".")[2].upper(), **values_of(item),
                            help=text.replace("%", "%%"))  # fmt: skip
    found, unknown = parser.parse_known_args(arguments)
    if unknown:
        if not unknown[0].startswith("--"):
            raise BadInput(f"unexpected argument '{unknown[0]}' (see python run.py --help)")
        keys = [each.removeprefix("--").partition("=")[0] for each in unknown if each.startswith("--")]
        words = suggestions(known) | {"resume": "resume", "mode": "stage"}
        problems = unknown_keys(keys, words.values(), "--", words)
        hint = f"python run.py --stage {system.stages[0]} --help"
        raise BadInput(f"{'; '.join(problems)} (the settings of {system.name}: {hint})")
    values = vars(found)
    del values["resume"]
    return {name: value_of(known[name], text) for name, text in values.items() if text is not None}


def values_of(item: Field) -> dict[str, Any]:
    """How many values an option takes, as argparse wants to hear it; one of true or false alone is true."""
    if item.type is bool:
        return {"nargs": "?", "const": "true"}
    if typing.get_origin(item.type) is not tuple:
        return {}
    kinds = typing.get_args(item.type)
    return {"nargs": "+" if kinds[-1] is Ellipsis else len(kinds)}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line like all others."""

    def error(self, message: str) -> None:
        """Report what is wrong with the command line."""
        raise BadInput(f"{message} (see {self.prog} --help)")


def value_of(item: Field, text: str | list[str]) -> Any:
    """The value that an option's text stands for: true or false, a number (also .5 or +3), else itself."""
    if isinstance(text, list):
        return [value_of(item, each) for each in text]
    if item.type in (str, str | None, tuple[str, ...]):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text
