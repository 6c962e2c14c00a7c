"""Settings of a run: where each comes from, what it may be, and all that is wrong with them at once.

An option of the command line wins over the top of run.py, that over the dataset JSON's block (``run`` for
WSCH, ``bth`` for BTH), and that over the published value, which stands here.
"""

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import BadInput, DatasetConfig, load_config, make_demo, n_hidden_frames, read_json, unknown_keys


def setting(
    default: Any, description: str, valid: Callable[[Any], bool] = lambda _: True, expected: str = ""
) -> Any:
    """A dataclass field with its explanation and the values it may take."""
    if expected:
        description = f"{description} ({expected})"
    metadata = {"description": description, "valid": valid, "expected": expected}
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


@dataclass(frozen=True)
class Cfg:
    """Hyper-parameters of WSCH's training (spec: section 7)."""

    a: float = setting(0.02, "weight of the cluster loss", lambda v: v >= 0, "0 or more")
    b: float = setting(1.0, "weight of the contrastive loss", lambda v: v >= 0, "0 or more")
    clus_temperature: float = setting(0.2, "temperature of the cluster loss", positive, "above 0")
    n_clusters: int = setting(800, "centers of the k-means over hash codes", positive, "1 or more")
    temperature: float = setting(0.5, "temperature of the contrastive loss", positive, "above 0")
    tau_plus: float = setting(0.1, "prior probability of a false negative", ratio, "0 <= tau_plus < 1")
    p1: float = setting(0.9, "mask ratio of pre-training and clustering", ratio, "0 <= p1 < 1")
    p2: float = setting(0.6, "mask ratio of the two training passes", ratio, "0 <= p2 < 1")


@dataclass(frozen=True)
class Bth:
    """Settings of BTH alone (its spec: sections 2 and 3)."""

    n_anchors: int = setting(2000, "anchors requested from k-means", lambda v: v >= 5, "5 or more")
    mask_weight: float = setting(0.92, "weight of the mask loss in bth.train", lambda v: v >= 0, "0 or more")
    neighborhood_weight: float = setting(
        0.08, "weight of the neighborhood loss", lambda v: v >= 0, "0 or more"
    )
    cluster_weight: float = setting(0.8, "weight of the cluster loss", lambda v: v >= 0, "0 or more")
    lr_decay: float = setting(
        0.9, "factor on lr every lr_decay_epochs", lambda v: 0 < v <= 1, "0 < lr_decay <= 1"
    )
    lr_decay_epochs: int = setting(20, "epochs between two decays of lr", positive, "1 or more")
    lr_min: float = setting(1e-4, "lr never decays below it", positive, "above 0")
    latent_feats: str | None = setting(
        None, "latent features, HDF5; None: latent_feats.h5 in result_weight_dir"
    )
    anchors: str | None = setting(None, "anchors, HDF5; None: anchors.h5 in result_weight_dir")
    train_assit: str | None = setting(None, "pseudo labels, HDF5; None: train_assit.h5 in result_weight_dir")
    sim_matrix: str | None = setting(None, "similarity, HDF5; None: sim_matrix.h5 in result_weight_dir")


DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Settings:
    """Everything a stage is run with. Field names are the published ones where there are any."""

    stage: str = setting(
        "pipeline", "pipeline, pretrain, train, test, or bth. and one of these, or bth.prepare"
    )
    data_set_config: str = setting("Json/demo.json", "dataset JSON")
    max_iter: tuple[int, int] = setting(
        (100, 300), "epochs of the two training stages", lambda v: min(v) >= 0, "two numbers, 0 or more"
    )
    result_log_dir: str = setting("log", "folder of the run logs")
    result_weight_dir: str = setting("weight", "folder of the checkpoints")
    lr: float = setting(1e-4, "Adam's learning rate", positive, "above 0")
    batch_size: int = setting(128, "videos in a batch", positive, "1 or more")
    hidden_size: int = setting(
        1024, "width H of the encoder", size, "a multiple of 64 for WSCH, even for BTH"
    )
    decoder_size: int = setting(
        1024, "width H' of the decoder", lambda v: v > 0 and v % 4 == 0, "a multiple of 4"
    )
    hashcode_size: int = setting(64, "bits of a hash code", size, "1 or more")
    weight_path: str | None = setting(
        None,
        "checkpoint to start from, or a folder: its newest finished one that fits; None: result_weight_dir",
    )
    cfg: Cfg = field(default_factory=Cfg)
    bth: Bth = field(default_factory=Bth)
    seed: int = setting(3346, "seed of weights, order and masks", lambda v: v >= 0, "0 or more")
    device: str = setting("auto", "where to compute", lambda v: v in DEVICES, "auto, cpu, cuda or mps")
    precision: str = setting(
        "float32", "of the matrix products", lambda v: v in ("float32", "bfloat16"), "float32 or bfloat16"
    )
    tf32: bool = setting(False, "allow TF32 in float32 products on CUDA: faster, 10 bits of mantissa")
    memory: str = setting(
        "auto", "where features are read from", lambda v: v in ("auto", "ram", "disk"),
        "auto, ram or disk; auto: ram when the set fits in half of what is free",
    )  # fmt: skip
    num_workers: int = setting(1, "threads that read ahead", lambda v: v >= 0, "0: read in line")
    checkpoint_minutes: float = setting(
        10, "minutes between checkpoints inside an epoch", positive, "above 0"
    )
    given: tuple[str, ...] = ()  # settings that the user or the JSON stated, as against defaults

    def as_dict(self) -> dict:
        """The settings as JSON writes them, without ``given``."""
        content = dataclasses.asdict(self)
        del content["given"]
        return json.loads(json.dumps(content))

    @property
    def is_bth(self) -> bool:
        """Whether the stage is one of BTH's."""
        return self.stage.startswith("bth.")

    @property
    def config(self) -> DatasetConfig:
        """The dataset that ``data_set_config`` names."""
        return load_config(self.data_set_config)


STAGES = ("pipeline", "pretrain", "train", "test",
          "bth.pipeline", "bth.pretrain", "bth.prepare", "bth.train", "bth.test")  # fmt: skip
RUN_KEYS = ("max_iter", "lr", "batch_size", "hidden_size", "decoder_size", "hashcode_size", "cfg")
BTH_KEYS = ("max_iter", "lr", "batch_size", "hidden_size", "hashcode_size")
BTH_PUBLISHED = {"max_iter": (56, 56), "lr": 3e-4, "batch_size": 256, "hidden_size": 256}
# Settings that cannot change a number: a run may be resumed with other ones.
FREE_ON_RESUME = ("memory", "num_workers", "checkpoint_minutes")


def fields(cls: type, prefix: str = "") -> dict[str, dataclasses.Field]:
    """The settings of a class by dotted name, the nested ones included."""
    found = {}
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(item.type):
            found |= fields(item.type, f"{prefix}{item.name}.")
        elif "description" in item.metadata:
            found[prefix + item.name] = item
    return found


FIELDS = fields(Settings)


def convert(name: str, value: Any) -> Any:
    """The value of a setting in its own type.

    Raises:
        ValueError: its type or its range is wrong; says what was expected.
    """
    item = FIELDS[name]
    kind, expected = item.type, item.metadata["expected"]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(kind, types.UnionType):
        kind = str
    if typing.get_origin(kind) is tuple:
        valid = (
            isinstance(value, list | tuple) and len(value) == 2 and all(type(each) is int for each in value)
        )
        value, kind_name = tuple(value) if valid else value, "two whole numbers"
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
        expected = f"{kind_name}, {expected}" if expected and expected != kind_name else kind_name
    if not valid or not item.metadata["valid"](value):
        raise ValueError(f"'{name}' must be {expected}, found {json.dumps(value, default=str)}")
    return value


def flatten(values: Mapping, names: typing.Iterable[str], problems: list[str], where: str) -> dict[str, Any]:
    """Nested settings, ``{"cfg": {"a": 1}}``, by dotted name; those not in ``names`` go to problems."""
    flat = {}
    nested = {name.split(".")[0] for name in names if "." in name}
    for key, value in values.items():
        if value is None:
            continue
        if key in nested and not isinstance(value, Mapping):
            problems.append(f"{where}'{key}' must be an object, found {json.dumps(value, default=str)}")
        elif key in nested:
            flat |= {f"{key}.{inner}": inner_value for inner, inner_value in value.items()}
        else:
            flat[key] = value
    problems += [where + problem for problem in unknown_keys(flat, names)]
    return {key: value for key, value in flat.items() if key in names and value is not None}


def read_blocks(path: Path, run: Mapping, bth: Mapping, problems: list[str]) -> dict[str, dict[str, Any]]:
    """The settings of a dataset's blocks ``run`` and ``bth`` by dotted name, converted."""
    where = {name: f"{path}: in '{name}': " for name in ("run", "bth")}
    names = [name for name in FIELDS if name.split(".")[0] in RUN_KEYS]
    wsch = flatten(run, names, problems, where["run"])
    own = [name.removeprefix("bth.") for name in FIELDS if name.startswith("bth.")]
    flat = flatten(bth, [*BTH_KEYS, *own], problems, where["bth"])
    flat = {f"bth.{key}" if key in own else key: value for key, value in flat.items()}
    return {"run": converted(wsch, problems, where["run"]), "bth": converted(flat, problems, where["bth"])}


def converted(flat: Mapping[str, Any], problems: list[str], where: str) -> dict[str, Any]:
    """Settings in their own types; what cannot be converted goes to problems."""
    values = {}
    for name, value in flat.items():
        try:
            values[name] = convert(name, value)
        except ValueError as error:
            problems.append(f"{where}{error}")
    return values


def check_blocks(config: DatasetConfig) -> None:
    """Check both blocks of a dataset JSON.

    Raises:
        BadInput: all that is wrong with them.
    """
    problems: list[str] = []
    read_blocks(config.path, config.run, config.bth, problems)
    if problems:
        raise BadInput("; ".join(problems))


def resolve(form: Mapping[str, Any], options: Mapping[str, Any]) -> Settings:
    """Settings from the form on top of run.py and the options of the command line.

    Args:
        form: published names to values, ``None`` = what the dataset JSON says; ``cfg`` and ``bth`` nested.
        options: dotted names to values.

    Raises:
        BadInput: all that is wrong with form, options and dataset JSON, in one line.
    """
    problems: list[str] = []
    stated = converted(flatten(form, FIELDS, problems, "run.py: "), problems, "run.py: ")
    stated |= converted(options, problems, "option ")
    stage = stated.get("stage", Settings.stage)
    if stage not in STAGES:
        problems.append(f"'stage' must be one of {', '.join(STAGES)}, found {json.dumps(stage)}")
    is_bth = stage.startswith("bth.")
    path = Path(stated.get("data_set_config", Settings.data_set_config))
    try:
        config = load_config(path)
    except BadInput as error:
        with contextlib.suppress(BadInput):  # the blocks' problems too, as far as the file can be read
            content = read_json(path)
            blocks = [content.get(name) for name in ("run", "bth")]
            read_blocks(path, *(each if isinstance(each, dict) else {} for each in blocks), problems)
        raise BadInput("; ".join([str(error), *problems])) from None
    blocks = read_blocks(config.path, config.run, config.bth, problems)
    stated = blocks["bth" if is_bth else "run"] | stated
    values = (BTH_PUBLISHED if is_bth else {}) | stated

    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}

    plain = {name: value for name, value in values.items() if "." not in name}
    settings = Settings(
        **plain, cfg=Cfg(**part("cfg.")), bth=Bth(**part("bth.")), given=tuple(sorted(stated))
    )
    problems += check_together(settings, config)
    if problems:
        raise BadInput("; ".join(problems))
    make_demo(config)
    return settings


def check_together(settings: Settings, config: DatasetConfig) -> list[str]:
    """What is wrong with settings that are each right by themselves."""
    problems = []
    step = 2 if settings.is_bth else 64
    if settings.hidden_size % step:
        problems.append(
            f"'hidden_size' must be a multiple of {step} (the encoder's width, not the feature's "
            f"{config.feature_size}), found {settings.hidden_size}"
        )
    trained = {"pipeline": ("p1", "p2"), "pretrain": ("p1",), "train": ("p1", "p2")}.get(settings.stage, ())
    for name in trained:
        p, n_frames = getattr(settings.cfg, name), config.max_frames
        hidden = n_hidden_frames(n_frames, p)
        if not 0 < hidden < n_frames:
            problems.append(f"'cfg.{name}' = {p} hides {hidden} of {n_frames} frames: at least one must be "
                            "hidden and one visible")  # fmt: skip
    starts_fresh = ("pipeline", "pretrain", "bth.pipeline", "bth.pretrain", "bth.prepare")
    if settings.weight_path is not None and settings.stage in starts_fresh:
        problems.append(
            f"'weight_path' must be None: stage {settings.stage} does not start from a checkpoint, "
            f"found {json.dumps(settings.weight_path)}"
        )
    return problems


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name every setting in which two runs differ, with both values."""
    found = []
    for key in then.keys() | now.keys():
        one, other = then.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{prefix}{key}.")
        elif one != other and prefix + key not in FREE_ON_RESUME:
            found.append(f"{prefix}{key} was {json.dumps(one)}, is {json.dumps(other)}")
    return sorted(found)
