"""The command line: options over the form of run.py, the choice of the stage, resuming, one-line errors."""

import argparse
import importlib
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

from data import BadInput, clean_temporaries, expand, unknown_keys
from engine.device import STOP, Interrupted
from engine.runs import Launch, find_unfinished, jsonl
from engine.settings import BTH_PUBLISHED, FIELDS, Settings, differences, resolve


def launch(train_model: Callable, form: Mapping[str, Any], arguments: list[str]) -> int:
    """Run a stage, or the one that ``--stage`` or ``--resume`` names.

    Args:
        train_model: the entry point of the stage that run.py imported.
        form: the settings on top of run.py; ``None`` = what the dataset JSON says.
        arguments: of the command line.

    Returns:
        The exit status: 0 done, 2 bad input, 130 or 143 stopped by SIGINT or SIGTERM.
    """
    runs: Launch | None = None
    with STOP:
        try:
            options, resume = parse(arguments, form)
            form = {"stage": train_model.__module__, **form}
            runs = resumed(form, options, resume) if resume is not None else started(form, options)
            importlib.import_module(runs.settings.stage).train_model(runs.settings, *runs.runs)
            return 0
        except (BadInput, OSError) as error:  # a folder removed while running, a name too long, ...
            print("error:", " ".join(str(error).split()), file=sys.stderr)
            return 2
        except (Interrupted, KeyboardInterrupt):
            number = STOP.number or 2
            begun = runs is not None and runs.numbers
            how = how_to_resume(runs.numbers[0], runs.settings) if begun else "nothing was begun"
            print(f"stopped; {how}", file=sys.stderr)
            return 128 + number


def started(form: Mapping[str, Any], options: Mapping[str, Any]) -> Launch:
    """A new launch; an unfinished one is mentioned."""
    settings = resolve(form, options)
    stages = importlib.import_module(settings.stage)
    if (log_dir := expand(settings.result_log_dir)).is_dir() and (found := find_unfinished(log_dir)):
        record, lock = found
        lock.close()
        first = record["runs"][0]
        print(f"run {first} ({record['settings']['stage']}) is unfinished; {how_to_resume(first, settings)}, "
              f"to forget it: delete {jsonl(log_dir, first)}")  # fmt: skip
    return Launch(settings, getattr(stages, "STAGES", (settings.stage,)), dict(options))


def how_to_resume(number: int, settings: Settings) -> str:
    """The command that goes on with a run."""
    folder = settings.result_log_dir
    where = "" if folder == Settings.result_log_dir else f" --result_log_dir {shlex.quote(folder)}"
    return f"to go on with it: python run.py --resume {number}{where}"


def resumed(form: Mapping[str, Any], options: dict[str, Any], number: int) -> Launch:
    """The launch to go on with: its own options again, and the same settings.

    Raises:
        BadInput: there is none, or the settings are not those it was started with.
    """
    log_dir = expand(options.get("result_log_dir") or form.get("result_log_dir") or Settings.result_log_dir)
    found = find_unfinished(log_dir, number or None)
    if not found:
        raise BadInput(f"--resume: no unfinished run in {log_dir}")
    record, lock = found
    for folder in (log_dir, expand(record["settings"]["result_weight_dir"])):
        clean_temporaries(folder)
    stage = {"stage": record["settings"]["stage"]}
    settings = resolve({**form, **stage}, {**record["options"], **options})
    if changed := differences(record["settings"], settings.as_dict()):
        raise BadInput(
            f"--resume: run {record['runs'][0]} was started with other settings: {'; '.join(changed)}"
        )
    return Launch(settings, tuple(record["stages"]), record["options"], tuple(record["runs"]), lock)


def parse(arguments: list[str], form: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """Options by dotted name, and what ``--resume`` says: None, 0 for the newest run, or a number.

    Raises:
        BadInput: an option is unknown or lacks its value.
    """
    parser = Parser(
        usage="python run.py [--resume [RUN]] [--SETTING VALUE ...]",
        description="Train and test WSCH or BTH. Every setting on top of run.py is an option too; an option "
        "wins over run.py, that over the dataset JSON, that over the default.",
        allow_abbrev=False,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--resume", nargs="?", type=int, const=0, metavar="RUN",
                        help="go on with the newest unfinished run, or with this one")  # fmt: skip
    for name, item in FIELDS.items():
        group, _, key = name.rpartition(".")
        stated = (form.get(group) or {}).get(key) if group else form.get(name)
        default = show(item.default) if stated is None else show(stated)
        text = f"{item.metadata['description']}\ndefault: {default}"
        if stated is None and key in BTH_PUBLISHED and not group:
            text += f" (BTH: {show(BTH_PUBLISHED[key])})"
        parser.add_argument(f"--{name}", metavar=key.upper(), nargs=2 if name == "max_iter" else None,
                            help=text.replace("%", "%%"))  # fmt: skip
    found, unknown = parser.parse_known_args(arguments)
    if unknown:
        if not unknown[0].startswith("--"):
            raise BadInput(f"unexpected argument '{unknown[0]}' (see python run.py --help)")
        keys = [each.removeprefix("--").partition("=")[0] for each in unknown if each.startswith("--")]
        raise BadInput("; ".join(unknown_keys(keys, [*FIELDS, "resume"], "--")))
    values = vars(found)
    resume = values.pop("resume")
    return {name: value_of(name, text) for name, text in values.items() if text is not None}, resume


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line like all others."""

    def error(self, message: str) -> None:
        """Report what is wrong with the command line."""
        raise BadInput(f"{message} (see python run.py --help)")


def value_of(name: str, text: str | list[str]) -> Any:
    """The value that an option's text stands for: a number, true or false, else the text itself."""
    if isinstance(text, list):
        return [value_of(name, each) for each in text]
    if FIELDS[name].type in (str, str | None):
        return text
    try:
        return json.loads(text.lower())
    except (ValueError, RecursionError):  # no number, or one of 5,000 digits
        return text


def show(value: Any) -> str:
    """A value as an option would be written."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
