"""The dataset JSON: the facts of a dataset, and each system's settings to use on it (spec: section 1)."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from formats.files import BadInput, did_you_mean, expand, read_json, unknown_keys


@dataclass(frozen=True)
class Split:
    """One of the three parts of a dataset."""

    name: str  # train, test (the database) or query
    features: tuple[Path, ...]
    labels: tuple[Path, ...]  # empty: unlabelled; such a database or such queries cannot be tested
    label_variable: str
    variable_is_stated: bool  # by the JSON; else another one is taken where it is the only one


@dataclass(frozen=True)
class DatasetConfig:
    """A dataset JSON: the facts of a dataset, and the settings to use on it."""

    path: Path
    dataset: str
    train: Split
    test: Split
    query: Split
    num_class: int
    feature_size: int  # "hidden_size" in the JSON: the published name of D
    max_frames: int
    feature_key: str  # of the HDF5 dataset that holds the features
    blocks: Mapping[str, Mapping] = field(default_factory=dict)  # settings by system, checked by the engine
    facts: Mapping[str, Any] = field(default_factory=dict)  # the JSON without these blocks

    @property
    def query_is_database(self) -> bool:
        """Every database video is a query and stays in the database: it retrieves itself."""
        return self.query.features == self.test.features

    @property
    def protocol(self) -> str:
        """Who asks: ``query`` or ``database``."""
        return "database" if self.query_is_database else "query"


FILE_KEYS = ("root", "train", "test", "query", "train_label", "test_label", "query_label")
REQUIRED_KEYS = ("dataset", "train", "test", "query", "test_label", "query_label", "num_class", "hidden_size",
                 "max_frames")  # fmt: skip
OPTIONAL_KEYS = ("train_label", "root", "label_variable", "feature_key", "protocol")
SPLITS = ("train", "test", "query")
# The systems: the block of each in a dataset JSON, and the module whose SYSTEM tells the engine of it.
SYSTEMS = {"run": "pretrain", "bth": "bth.settings", "conmh": "conmh.settings"}
PROTOCOLS = ("query", "database")
LABEL_VARIABLES = {("activitynet", "test"): "re_label", ("activitynet", "query"): "q_label"}  # else "labels"


def find_json(name: str | Path) -> Path:
    """A dataset JSON by the path the user wrote, else the project's own of that name.

    Raises:
        BadInput: there is none; suggests one of those beside it and in both folders ``Json``.
    """
    path, project = expand(str(name)), Path(__file__).parents[1]
    if os.path.exists(path):
        return path
    if os.path.isfile(project / path):
        return project / path
    folders = (project / "Json", Path("Json"), path.parent)
    there = [each for folder in folders for each in folder.glob("*.json")]
    meant = {each.stem: str(each).removeprefix(f"{project}/") for each in there}
    raise BadInput(f"{path}: no such dataset JSON{did_you_mean(path.stem, meant)}")


def load_config(path: str | Path, protocol: str | None = None) -> DatasetConfig:
    """Read a dataset JSON (spec: section 1), published or with blocks of our own (``SYSTEMS``).

    Args:
        path: of the file.
        protocol: ``query`` or ``database``: who asks; None: what the file says.

    Raises:
        BadInput: all that is wrong with it, in one line.
    """
    content = read_json(path)
    problems = unknown_keys(content, [*REQUIRED_KEYS, *OPTIONAL_KEYS, *SYSTEMS])
    problems += [f"key '{key}' is missing" for key in REQUIRED_KEYS if key not in content]

    def check(key: str, valid: bool, expected: str) -> None:
        if key in content and not valid:
            problems.append(f"'{key}' must be {expected}, found {json.dumps(content[key])}")

    for key in ("dataset", "root", "feature_key"):
        check(key, isinstance(content.get(key), str) and content[key] != "", "a non-empty string")
    for key in ("num_class", "hidden_size", "max_frames"):
        value = content.get(key)
        meaning = " (the feature width D)" if key == "hidden_size" else ""
        least = 0 if key == "num_class" and not any(content.get(f"{name}_label") for name in SPLITS) else 1
        expected = f"a positive integer{meaning}"
        check(key, type(value) is int and least <= value < 2**20, expected)
    for key in SYSTEMS:
        check(key, isinstance(content.get(key), dict), "an object")
    check("protocol", content.get("protocol") in PROTOCOLS, "query or database")
    root = expand(str(content.get("root", "")))

    def files(key: str, may_be_empty: bool = False) -> tuple[Path, ...]:
        value = content.get(key, "")
        names = [] if value in ("", None) else value if isinstance(value, list) else [value]
        valid = all(isinstance(name, str) and name.isprintable() and name for name in names)
        valid = valid and len(set(names)) == len(names)  # a video twice in the database finds its twin
        expected = "a file name or a list of file names, each once"
        check(key, valid and (may_be_empty or len(names) > 0), expected)
        return tuple(root / expand(name) for name in names) if valid else ()

    stated = content.get("label_variable", {})
    variables = dict.fromkeys(SPLITS, stated) if isinstance(stated, str) else stated
    names = variables.values() if isinstance(variables, dict) and variables.keys() <= set(SPLITS) else [""]
    valid = all(isinstance(name, str) and name for name in names)
    check("label_variable", valid, f"the variable's name, or an object of names for {', '.join(SPLITS)}")
    splits = {
        name: Split(
            name,
            files(name),
            files(f"{name}_label", may_be_empty=True),
            variables[name]
            if valid and name in variables
            else LABEL_VARIABLES.get((str(content.get("dataset")), name), "labels"),
            variable_is_stated=valid and name in variables,
        )
        for name in SPLITS
    }
    if problems:
        raise BadInput(f"{path}: {'; '.join(problems)}")
    if (protocol or content.get("protocol")) == "database":
        splits["query"] = splits["test"]
    return DatasetConfig(
        path=Path(path),
        dataset=content["dataset"],
        **splits,
        num_class=content["num_class"],
        feature_size=content["hidden_size"],
        max_frames=content["max_frames"],
        feature_key=content.get("feature_key", "feats"),
        blocks={key: content[key] for key in SYSTEMS if key in content},
        facts={key: value for key, value in content.items() if key not in SYSTEMS},
    )
