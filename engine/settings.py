"""What a setting may be: the settings that all stages have, and the reading of values for any of them.

A system adds its own in a subclass of ``SystemSettings`` whose defaults are its published values. Where the
values of a run come from stands in ``engine/systems.py``.
"""

import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar

from formats.dataset import PROTOCOLS, DatasetConfig
from formats.files import unknown_keys


def setting(
    default: Any,
    description: str,
    valid: Callable[[Any], bool] = lambda _: True,
    expected: str = "",
    also: str = "",
) -> Any:
    """A dataclass field with its explanation and the values it may take.

    Args:
        default: its value where nobody states one.
        description: of what it is, for ``--help``.
        valid: whether a value of the right type may be taken.
        expected: which these are, in words.
        also: other words that people try for it, separated by spaces; an error then suggests its name.
    """
    if expected:
        description = f"{description} ({expected})"
    metadata = {"description": description, "valid": valid, "expected": expected, "also": also.split()}
    return field(default=default, metadata=metadata)


def positive(value: float) -> bool:
    """Above zero."""
    return value > 0


def size(value: int) -> bool:
    """A width that a matrix can have."""
    return 0 < value <= 2**16


def ratio(value: float) -> bool:
    """In [0, 1)."""
    return 0 <= value < 1


def cuts(value: tuple[int, ...]) -> bool:
    """Ranks, each named once."""
    return min(value) >= 1 and len(set(value)) == len(value)


def not_negative(value: float) -> bool:
    """Zero or above."""
    return value >= 0


def is_device(value: str) -> bool:
    """A device by name; whether this machine has it is seen when the run begins."""
    return re.fullmatch("auto|cpu|cuda|cuda:[0-9]{1,3}|mps", value) is not None


DEVICES = "auto, cpu, cuda, cuda:N (GPU number N, from 0) or mps"
# Settings that cannot change a number: a run may be resumed with other ones.
FREE_ON_RESUME = ("memory", "num_workers", "checkpoint_minutes", "eval_every", "max_failures")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What any stage is run with. Field names are the published ones where there are any."""

    block: ClassVar[str] = ""  # the system's key in a dataset JSON, and of a group of its own settings
    fresh_stages: ClassVar[tuple[str, ...]] = ()  # those that do not start from a checkpoint

    stage: str = setting(MISSING, "what to run")
    data_set_config: str = setting(
        "Json/demo.json", "dataset JSON", also="data data_dir data_path dataset config json"
    )
    result_log_dir: str = setting("log", "folder of the run logs", also="logs log_dir")
    result_weight_dir: str = setting(
        "weight", "folder of the checkpoints", also="output out output_dir save_dir checkpoint_dir"
    )
    batch_size: int = setting(MISSING, "videos in a batch", positive, "1 or more", also="bs batch")
    hashcode_size: int = setting(
        64,
        "bits of a hash code",
        size,
        "1 or more",
        also="bits n_bits hash_bits code_bits code_length hash_size",
    )
    weight_path: str | None = setting(
        None,
        "checkpoint to start from, or a folder: its newest finished one that fits; None: the newest of this "
        "dataset in result_weight_dir",
        also="weights checkpoint ckpt pretrained load model",
    )
    seed: int = setting(
        3346, "seed of weights, order and masks", not_negative, "0 or more", also="random_seed"
    )
    device: str = setting("auto", "where to compute", is_device, DEVICES, also="gpu gpus gpu_id cuda cpu")
    precision: str = setting(
        "float32", "of the matrix products", lambda v: v in ("float32", "bfloat16"), "float32 or bfloat16",
        also="dtype amp fp16 bf16",
    )  # fmt: skip
    tf32: bool = setting(False, "allow TF32 in float32 products on CUDA: faster, 10 bits of mantissa")
    memory: str = setting(
        "auto", "where features are read from", lambda v: v in ("auto", "ram", "disk"),
        "auto, ram or disk; auto: ram when the set fits in half of what is free",
    )  # fmt: skip
    num_workers: int = setting(1, "threads that read ahead", not_negative, "0: read in line")
    checkpoint_minutes: float = setting(
        10, "minutes between checkpoints inside an epoch", positive, "above 0"
    )
    config: DatasetConfig | None = None  # what data_set_config held when the run began
    given: tuple[str, ...] = ()  # settings that the user or the JSON stated, as against defaults

    @classmethod
    def reads_dataset(cls, stated: Mapping[str, Any]) -> bool:
        """Whether a run with these settings needs a dataset JSON."""
        return True

    @property
    def source(self) -> str:
        """What a run reads, for its log."""
        return str(self.config.path) if self.config else self.data_set_config

    def unsaid(self) -> dict[str, Any]:
        """What a published checkpoint does not say of its network, as arguments of ``load_published``."""
        return {}

    def get(self, name: str) -> Any:
        """A setting by its dotted name."""
        return functools.reduce(getattr, name.split("."), self)

    def as_dict(self) -> dict:
        """The settings as JSON writes them, groups nested."""
        content: dict[str, Any] = {}
        for name in fields(type(self)):
            group, _, key = name.rpartition(".")
            place = content.setdefault(group, {}) if group else content
            place[key] = as_json(self.get(name))
        return content

    def changes_since(self, record: Mapping) -> list[str]:
        """Name every setting that differs from what ``as_dict`` wrote into a log or checkpoint, with both."""
        found = []
        for name, item in sorted(fields(type(self)).items()):
            then, now = recorded(record, name, item), as_json(self.get(name))
            if then != now and name not in FREE_ON_RESUME:
                found.append(f"{name} was {json.dumps(then)}, is {json.dumps(now)}")
        return found

    def problems(self) -> list[str]:
        """What is wrong with settings that are each right by themselves."""
        if self.weight_path is None or self.stage not in self.fresh_stages:
            return []
        return [f"'weight_path' must be None: stage {self.stage} does not start from a checkpoint, "
                f"found {json.dumps(self.weight_path)}"]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RankingSettings(Settings):
    """What a ranking of database by queries is measured with."""

    ks: tuple[int, ...] = setting(MISSING, "cuts K of mAP@K", cuts, "whole numbers from 1 on, each once")
    protocol: str | None = setting(
        None, "who asks: the query file, or every video of the database, which stays in it; None: what the "
        "dataset JSON says, else the database if it names the same file for both",
        lambda v: v in PROTOCOLS, "query or database",
    )  # fmt: skip
    exclude_self: bool = setting(
        False, "with protocol database, leave every video out of its own ranking (published tables keep it)"
    )
    result_dir: str = setting(
        "result", "folder of results: the numbers and the codes of every test", also="result results"
    )

    def problems(self) -> list[str]:
        """What is wrong with settings that are each right by themselves."""
        if not self.exclude_self or self.config.query_is_database:
            return super().problems()
        expected = "'exclude_self' must be false where the query file asks (protocol query), found true"
        return [*super().problems(), expected]


@dataclass(frozen=True, kw_only=True)
class SystemSettings(RankingSettings):
    """What every system of hashing is trained and tested with; each states its own published values."""

    max_iter: tuple[int, int] = setting(
        MISSING, "epochs of the two training stages", lambda v: min(v) >= 0, "two whole numbers, 0 or more"
    )
    lr: float = setting(MISSING, "Adam's learning rate", positive, "above 0")
    hidden_size: int = setting(MISSING, "width H of the network", size, "1 or more")
    eval_every: int = setting(
        0, "epochs between two looks at mAP@K of the test split while training, for the log alone: they "
        "choose nothing and change no weight", not_negative, "0: never",
    )  # fmt: skip

    @classmethod
    def sized_for(cls, n_videos: int) -> dict[str, Any]:
        """What the block of a new dataset's JSON should state, of so many training videos."""
        return {}


# Settings that every system's block in a dataset JSON may hold, beside the system's own.
BLOCK_KEYS = ("max_iter", "lr", "batch_size", "hidden_size", "hashcode_size", "ks")


def fields(cls: type, prefix: str = "") -> dict[str, dataclasses.Field]:
    """The settings of a class by dotted name, the nested ones included."""
    found = {}
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(item.type):
            found |= fields(item.type, f"{prefix}{item.name}.")
        elif "description" in item.metadata:
            found[prefix + item.name] = item
    return found


def suggestions(known: Mapping[str, dataclasses.Field]) -> dict[str, str]:
    """The setting that a word stands for: its name, the last part of that, or a word that people try.

    Such a word may bear the name of the setting's group.
    """
    found = {}
    for name, item in known.items():
        group, dot, last = name.rpartition(".")
        words = (*item.metadata["also"], last)
        found |= dict.fromkeys((*words, *(group + dot + word for word in words)), name)
    return found | {name: name for name in known}


def as_json(value: Any) -> Any:
    """A setting's value as JSON reads it back."""
    return list(value) if isinstance(value, tuple) else value


def recorded(record: Mapping, name: str, item: dataclasses.Field) -> Any:
    """A setting in what ``as_dict`` wrote; its default in a record of an older version, which lacks it."""
    group, _, key = name.rpartition(".")
    place = record.get(group) if group else record
    return place.get(key, as_json(item.default)) if isinstance(place, Mapping) else None


def show(value: Any) -> str:
    """A value as an option would be written."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def convert(name: str, item: dataclasses.Field, value: Any) -> Any:
    """The value of a setting in its own type.

    Raises:
        ValueError: its type or its range is wrong; says what was expected.
    """
    kind, expected = item.type, item.metadata["expected"]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(kind, types.UnionType):
        kind = str
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        n = None if kinds[-1] is Ellipsis else len(kinds)  # None: any number
        valid = isinstance(value, list | tuple) and len(value) == (n or len(value)) > 0
        accepted = (float, int) if kinds[0] is float else (kinds[0],)
        valid = valid and all(type(each) in accepted for each in value)
        kind_name = {str: "file names", float: "numbers"}.get(
            kinds[0], "two whole numbers" if n else "whole numbers"
        )
        value = tuple(map(kinds[0], value)) if valid else value
    elif kind is int:
        valid, kind_name = (
            number and value == int(value) if number and abs(value) < 1e18 else False,
            "a whole number",
        )
        value = int(value) if valid else value
    elif kind is float:
        valid, kind_name = number and abs(value) < 1e300, "a number"
        value = float(value) if valid else value
    else:
        valid, kind_name = type(value) is kind, {str: "a text", bool: "true or false"}[kind]
        valid = valid and (kind is bool or (value.isprintable() and value != ""))
    if not valid:
        expected = (
            f"{kind_name}, {expected}"
            if expected and not expected.startswith(kind_name)
            else expected or kind_name
        )
    if not valid or not item.metadata["valid"](value):
        raise ValueError(f"'{name}' must be {expected}, found {json.dumps(value, default=str)}")
    return value


def flatten(
    values: Mapping, known: Mapping[str, dataclasses.Field], problems: list[str], where: str
) -> dict[str, Any]:
    """Nested settings, ``{"cfg": {"a": 1}}``, by dotted name; those not in ``known`` go to problems."""
    flat = {}
    nested = {name.split(".")[0] for name in known if "." in name}
    for key, value in values.items():
        if value is None:
            continue
        if key in nested and not isinstance(value, Mapping):
            problems.append(f"{where}'{key}' must be an object, found {json.dumps(value, default=str)}")
        elif key in nested:
            flat |= {f"{key}.{inner}": inner_value for inner, inner_value in value.items()}
        else:
            flat[key] = value
    problems += [where + problem for problem in unknown_keys(flat, known, meant=suggestions(known))]
    return {key: value for key, value in flat.items() if key in known and value is not None}


def converted(
    flat: Mapping[str, Any], known: Mapping[str, dataclasses.Field], problems: list[str], where: str
) -> dict[str, Any]:
    """Settings in their own types; what cannot be converted goes to problems."""
    values = {}
    for name, value in flat.items():
        try:
            values[name] = convert(name, known[name], value)
        except ValueError as error:
            problems.append(f"{where}{error}")
    return values


def build(cls: type, values: Mapping[str, Any], **others: Any) -> Any:
    """A dataclass of settings from values by dotted name, defaults for the rest."""
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(item.type):
            prefix = f"{item.name}."
            inner = {name.removeprefix(prefix): values[name] for name in values if name.startswith(prefix)}
            others[item.name] = build(item.type, inner)
    return cls(**{name: value for name, value in values.items() if "." not in name}, **others)


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name everything in which two records differ, with both values."""
    found = []
    for key in then.keys() | now.keys():
        one, other = then.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key} was {json.dumps(one)}, is {json.dumps(other)}")
    return sorted(found)
