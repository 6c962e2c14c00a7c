"""Systems of hashing as the engine sees them, and where the settings of a run come from.

An option of the command line wins over the top of run.py, that over the system's block in the dataset JSON,
and that over the system's published value. The systems are listed in ``formats/dataset.py``.
"""

import contextlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from engine.settings import BLOCK_KEYS, Settings, SystemSettings, build, converted, fields, flatten
from formats.dataset import SYSTEMS, DatasetConfig, find_json, load_config
from formats.files import BadInput, did_you_mean, read_json

# Stages around the systems, each with a SYSTEM of its own that has no network.
TOOLS = ("tools.extract", "tools.encode", "tools.baseline")


class System(NamedTuple):
    """What a system brings: its settings, its stages, its network."""

    name: str  # as in Json/published.json
    settings: type[Settings]
    stages: tuple[str, ...]  # modules with a train_model
    tested: tuple[str, ...] = ()  # the stages among them whose checkpoints can be tested
    network: ModuleType | None = None  # with load_published and from_state
    # Before training, from settings and feature width:
    fresh_network: Callable[[Settings, int], nn.Module] | None = None


def systems() -> list[System]:
    """All systems of hashing.

    Raises:
        BadInput: one lacks the default of a setting, or names no stage whose checkpoints can be tested.
    """
    found = [importlib.import_module(module).SYSTEM for module in SYSTEMS.values()]
    for system in found:
        lacks = [f"a default of '{name}'" for name, item in fields(system.settings).items()
                 if item.default is MISSING]  # fmt: skip
        if lacks := lacks + ["'tested', its stages to test"] * (not system.tested):
            raise BadInput(f"system {system.name} lacks {', '.join(lacks)}")
    return found


def all_of_them() -> list[System]:
    """The systems and the stages around them."""
    return [*systems(), *(importlib.import_module(module).SYSTEM for module in TOOLS)]


def system_of(stage: Any) -> System:
    """The system that a stage belongs to.

    Raises:
        BadInput: there is no such stage.
    """
    for system in all_of_them():
        if stage in system.stages:
            return system
    names, found = stage_names(), json.dumps(stage, default=str)
    hint = did_you_mean(str(stage), {name: name for name in names})
    raise BadInput(f"'stage' must be one of {', '.join(names)}, found {found}{hint}")


def stage_names() -> list[str]:
    """All stages."""
    return [name for system in all_of_them() for name in system.stages]


def block_names(kind: type[Settings]) -> dict[str, str]:
    """What a system's block of a dataset JSON may hold: the settings' dotted names by the keys there.

    A system's own group of settings stands in its block without the group's name.
    """
    known = fields(kind)
    own = known.keys() - fields(SystemSettings).keys()
    stated = [name for name in known if name in BLOCK_KEYS or name in own]
    return {name.removeprefix(f"{kind.block}."): name for name in stated}


def read_blocks(path: Path, blocks: Mapping[str, Any], problems: list[str]) -> dict[str, dict[str, Any]]:
    """Every system's block of a dataset JSON: settings by dotted name, converted."""
    found = {}
    for system in systems():
        block, known, names = system.settings.block, fields(system.settings), block_names(system.settings)
        items = {short: known[name] for short, name in names.items()}
        where = f"{path}: in '{block}': "
        values = converted(flatten(blocks.get(block) or {}, items, problems, where), items, problems, where)
        found[block] = {names[short]: value for short, value in values.items()}
    return found


def check_blocks(config: DatasetConfig) -> None:
    """Check all blocks of a dataset JSON.

    Raises:
        BadInput: all that is wrong with them.
    """
    problems: list[str] = []
    read_blocks(config.path, config.blocks, problems)
    if problems:
        raise BadInput("; ".join(problems))


def resolve(form: Mapping[str, Any], options: Mapping[str, Any]) -> Settings:
    """Settings from the form on top of run.py and the options of the command line.

    Args:
        form: published names to values, ``None`` = what the dataset JSON says; groups nested. What only
            other systems have is left aside: the form is one for all of them.
        options: dotted names to values.

    Raises:
        BadInput: all that is wrong with form, options and dataset JSON, in one line.
    """
    stage = options.get("stage") or form.get("stage") or stage_names()[0]
    system = system_of(stage)
    known, problems = fields(system.settings), []
    everyones = {name: item for each in all_of_them() for name, item in fields(each.settings).items()} | known
    stated = converted(flatten(form, everyones, problems, "run.py: "), everyones, problems, "run.py: ")
    stated = {name: value for name, value in stated.items() if name in known} | {"stage": stage}
    stated |= converted(options, known, problems, "option ")
    config = None
    if system.settings.reads_dataset(stated):
        name = stated.get("data_set_config", Settings.data_set_config)
        config, blocks = read_dataset(name, stated.get("protocol"), problems)
        block = blocks.get(system.settings.block, {})
        stated = {name: value for name, value in block.items() if name in known} | stated
    settings = build(system.settings, stated, config=config, given=tuple(sorted(stated)))
    problems += settings.problems()
    if problems:
        raise BadInput("; ".join(problems))
    return settings


def read_dataset(
    name: str, protocol: str | None, problems: list[str]
) -> tuple[DatasetConfig, dict[str, dict[str, Any]]]:
    """A dataset JSON and its blocks; what is wrong with the blocks goes to problems.

    Raises:
        BadInput: what is wrong with the rest, and all the problems.
    """
    try:
        config = load_config(find_json(name), protocol)
    except BadInput as error:
        with contextlib.suppress(BadInput):  # the blocks' problems too, as far as the file can be read
            content = read_json(path := find_json(name))
            blocks = {key: value for key, value in content.items() if isinstance(value, dict)}
            read_blocks(path, blocks, problems)
        raise BadInput("; ".join([str(error), *problems])) from None
    return config, read_blocks(config.path, config.blocks, problems)
