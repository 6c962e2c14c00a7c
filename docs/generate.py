"""Write what of the documentation follows from the code: ``python -m docs.generate``.

docs/settings.md is every setting with its own description, docs/diagram.svg the picture on top of the README
(``docs/diagram.py``). A test compares both files with what this writes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

from docs.diagram import diagram
from engine.settings import RankingSettings, Settings, fields, show
from engine.systems import System, all_of_them, block_names, read_blocks, systems
from formats.files import read_json
from run import settings as form

HERE = Path(__file__).parent
# In Json/, where users' own files stand too.
SHIPPED = ("fcvid", "Anet", "yfcc", "yfcc-full", "ucf", "hmdb", "demo")
KINDS = {int: "whole number", float: "number", bool: "true or false"}
INTRODUCTION = """# Settings

<!-- Written by `python -m docs.generate` from the settings' descriptions in the code: edit those. -->

What a run can be told. A setting has its value from the first of these that states it:

1. an option of the command line, `--NAME VALUE`: every setting is one;
2. the top of [run.py](../run.py), for those marked "yes" below;
3. the dataset's JSON file, in the block and under the key given below (`run.cfg.a` is the key `a` of the
   object `cfg` in the block `run`);
4. the default, which is the published value where a system was published with one.

<!-- runnable -->
```bash
python run.py --hashcode_size 32 --cfg.n_clusters 30
```

`None` on top of `run.py` means: not stated there. A setting of several values is written with spaces as an
option (`--max_iter 100 300`), as a list in Python and JSON. `python run.py --stage STAGE --help` prints the
settings of a stage with the values of your `run.py`. A wrong name or value ends the run in one line that says
what was expected.

`--resume` is no setting: it goes on with the newest unfinished run, `--resume 7` with run 7, under the
settings it was started with. The commands that are not stages (`python -m tools.search` and the like) have a
few options each, which `--help` explains."""


def page() -> str:
    """The text of docs/settings.md."""
    every = {name: item for name, item in fields(Settings).items() if item.default is not MISSING}
    ranking = {name: item for name, item in fields(RankingSettings).items() if item.default is not MISSING}
    ranking = {name: item for name, item in ranking.items() if name not in every}
    ranked = [system.name for system in all_of_them() if issubclass(system.settings, RankingSettings)]
    parts = [
        INTRODUCTION,
        "## Every stage",
        table(every, systems()),
        f"## Every stage with a test\n\nThose of {', '.join(ranked)}.",
        table(ranking, systems()),
    ]
    shared = every | ranking
    for system in all_of_them():
        own = {name: item for name, item in fields(system.settings).items() if shared.get(name) is not item}
        stages = ", ".join(f"`--stage {name}`" for name in system.stages)
        parts += [f"## {system.name}\n\nRun by {stages}.", table(own, [system])]
        if system in systems():
            parts += ["What the datasets in [Json/](../Json) state:", shipped(system)]
    return "\n\n".join(parts) + "\n"


def table(known: Mapping[str, Field], readers: Iterable[System]) -> str:
    """Settings, one a line; the column "JSON" has the place in the block of each system in ``readers``."""
    rows = []
    for name, item in known.items():
        if name == "stage":  # named above the table
            continue
        places = [f"`{place}`" for system in readers for place in json_places(system, name)]
        expected = item.metadata["expected"]
        meaning = item.metadata["description"].removesuffix(f" ({expected})")
        values = ", ".join(filter(None, [KINDS.get(item.type), expected]))
        in_form = "yes" if stated_in_form(name) else ""
        rows.append([f"`{name}`", meaning, values, code(item.default), in_form, ", ".join(places)])
    return rows_as_text(["setting", "what it is", "values", "default", "run.py", "JSON"], rows)


def json_places(system: System, name: str) -> list[str]:
    """Where the block that a system reads states a setting, as ``block.key``: nowhere or in one place."""
    block = system.settings.block
    owner = next((each for each in systems() if each.settings.block == block), None)
    keys = block_names(owner.settings) if owner else {}
    return [f"{block}.{key}" for key, stated in keys.items() if stated == name]


def stated_in_form(name: str) -> bool:
    """Whether a setting stands on top of run.py."""
    group, _, key = name.rpartition(".")
    return key in (form.get(group, {}) if group else form)


def shipped(system: System) -> str:
    """What the dataset JSONs state for a system; those that state the same share a column."""
    columns: dict[str, Mapping[str, Any]] = {}
    for dataset in SHIPPED:
        path = HERE.parent / f"Json/{dataset}.json"
        values = read_blocks(path, read_json(path), [])[system.settings.block]
        same = next((title for title, others in columns.items() if others == values), None)
        columns.pop(same, None)
        columns[f"{same}, {dataset}" if same else dataset] = values
    rows = []
    for name, item in fields(system.settings).items():
        cells = [code(values[name]) if name in values else "" for values in columns.values()]
        if any(cells):
            rows.append([f"`{name}`", code(item.default), *cells])
    return rows_as_text(["setting", "default", *columns], rows)


def code(value: Any) -> str:
    """A value as an option is written."""
    text = str(value).lower() if isinstance(value, bool) else show(value)
    return f"`{text}`" if text else "none"


def rows_as_text(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def files() -> dict[Path, str]:
    """The text of every generated file."""
    return {HERE / "settings.md": page(), HERE / "diagram.svg": diagram()}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
