"""Which checkpoint a run starts from, and strict loading: every disagreement is named.

A checkpoint is a dict of plain data: ``stage``, ``sizes``, ``settings``, ``dataset`` (its JSON), ``launch``
(whose it is), ``inputs`` (what the run read), ``model`` (state dict) and its ``digest``, ``optimizer``
(Adam), ``position`` (epoch, pass, batch: where to go on), ``sums`` and ``losses`` (of the pass and the epoch
under way), ``seconds`` (of the epoch) and ``logs`` (lengths of both logs). A published checkpoint is accepted
where weights are read.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from data import open_store
from engine import ranks
from engine.settings import Settings, fields
from engine.systems import system_of
from formats.files import BadInput, expand
from formats.recipe import Recipe
from formats.weights import checked_weight, read_checkpoint

OF_UNKNOWN = "published weights, which do not say of what"  # the origin of such


@dataclass(frozen=True)
class Weights:
    """A network read from a checkpoint, and what the checkpoint says of it."""

    path: Path
    net: nn.Module
    optimizer: Mapping | None  # Adam's state
    origin: str  # what it was trained on, and its seed, in words
    seed: int | None  # None: published weights, which do not say
    differs: list[str]  # in what this is not the run's own
    recipe: Recipe | None  # of the features it was trained on; None: not known
    settings: Mapping[str, Any] | None  # it was trained with; None: not known


@ranks.on_first
def find_weights(
    settings: Settings,
    stages: tuple[str, ...],
    load_published: Callable[..., nn.Module],
    to_train: bool = False,
) -> Path:
    """The checkpoint that ``weight_path`` means: the file, or in a folder the newest finished one that fits.

    In ``result_weight_dir``, where nobody named a folder, one fits if it is of the run's dataset and sizes
    and, where training goes on from it, seed. In a folder that the user named sizes are enough, and it may
    be a published one.

    Args:
        settings: of the run.
        stages: the stages whose checkpoints fit.
        load_published: the network of a published checkpoint, from its content, its ``name`` and what the
            settings say that it does not.
        to_train: the run goes on training it.

    Raises:
        BadInput: none fits; names the nearest, and what differs.
    """
    folder = expand(settings.weight_path or settings.result_weight_dir)
    if settings.weight_path is not None and not folder.is_dir():
        return folder
    numbers = {int(match[1]): path for path in folder.glob("*.pth")
               if (match := re.fullmatch(r"([0-9]+)_[0-9]+\.pth", path.name))}  # fmt: skip
    features = training_features(settings) if settings.weight_path is None else None
    others = []  # what differs, and the checkpoint
    for _, path in sorted(numbers.items(), reverse=True):
        content = read_checkpoint(path, whole=False)
        if content.get("stage") not in stages:
            continue
        check_ours(content, path)
        problems = wrong_sizes(content["sizes"], settings, to_train)
        if settings.weight_path is None:
            problems += not_its_own(content, settings, features, to_train)
        if not problems:
            return path
        others.append((problems, path))
    if settings.weight_path is not None:
        published = list(published_files(folder, settings, load_published, to_train))
        if len(published) == 1:
            return published[0]
        if published:
            names = ", ".join(path.name for path in published[:5])
            raise BadInput(f"{folder}: {len(published)} published checkpoints fit ({names}); name one")
    wanted = f"{' or '.join(stages)} that fits"
    # To train on, the stage before; to use, all of the system's in turn.
    maker = stages[0] if to_train else system_of(stages[0]).stages[0]
    make = f"python run.py --stage {maker}, with the same options, makes one"
    hint = f"{make}; or set weight_path"
    if others:
        problems, path = min(others, key=lambda other: len(other[0]))
        nearest = f"the nearest is {path}, but {'; '.join(problems)}"
        hint = f"{nearest}; set weight_path to take it all the same; or {make}"
    raise BadInput(f"{folder}: no finished checkpoint of {wanted}; {hint}")


def published_files(
    folder: Path, settings: Settings, load_published: Callable[..., nn.Module], to_train: bool
) -> Iterator[Path]:
    """The published checkpoints of a folder whose network and sizes fit."""
    for path in sorted(folder.glob("*.pth")):
        content = read_checkpoint(path, whole=False)
        with contextlib.suppress(BadInput):  # of another system, or ours
            net = load_published(content, name=str(path), **settings.unsaid())
            if not wrong_sizes(net.sizes, settings, to_train):
                yield path


def load_weights(
    path: Path, settings: Settings, stages: tuple[str, ...], network: ModuleType, to_train: bool = False
) -> Weights:
    """Read a network, ours or published, every size off its weights; what contradicts the settings is named.

    Args:
        path: the checkpoint.
        settings: of the run; a size that the user or the dataset JSON stated must be the checkpoint's, and
            the dataset's features must be as wide.
        stages: the stages whose checkpoints are accepted.
        network: its module, with ``load_published`` and ``from_state``.
        to_train: the run goes on training it: the sizes that are defaults must be the checkpoint's too.

    Raises:
        BadInput: the file is no such checkpoint, or contradicts settings or dataset.
    """
    content = read_checkpoint(path)
    stage = content.get("stage")
    if "stage" not in content:
        net = network.load_published(content, name=str(path), **settings.unsaid())
    elif stage not in stages:
        raise BadInput(f"{path}: a checkpoint of stage {stage}, expected one of {' or '.join(stages)}")
    else:
        check_ours(content, path)
        net = network.from_state(content.get("model"), str(path))
    if problems := wrong_sizes(net.sizes, settings, to_train):
        raise BadInput(f"{path}: {'; '.join(problems)}")
    if "stage" not in content:
        return Weights(path, net, content.get("optimizer"), OF_UNKNOWN, None, [], None, None)
    differs = not_its_own(content, settings, training_features(settings), to_train)
    seed, settings = trained_on(content)[1], content["settings"]
    recipe = content["inputs"].get("recipe")
    return Weights(path, net, content["optimizer"], origin(content), seed, differs, recipe, settings)


def check_ours(content: Mapping, path: Path) -> None:
    """See that a checkpoint that bears a stage also has what is read of it.

    Raises:
        BadInput: it has not.
    """
    settings, inputs = content.get("settings"), content.get("inputs")
    features = inputs.get("features") if isinstance(inputs, Mapping) else None
    shape = features.get("shape") if isinstance(features, Mapping) else None
    recipe = inputs.get("recipe") if isinstance(inputs, Mapping) else None
    right = {
        "settings": isinstance(settings, Mapping) and {"data_set_config", "seed"} <= settings.keys(),
        "inputs": isinstance(shape, list) and len(shape) == 3 and all(type(size) is int for size in shape),
        "recipe": isinstance(recipe, Mapping | None),
        "dataset": isinstance(content.get("dataset", {}), Mapping),  # version 1.0.0 had none
        "sizes": isinstance(content.get("sizes"), Mapping),
        "optimizer": isinstance(content.get("optimizer"), Mapping),
    }
    if not all(right.values()):
        missing = min(key for key, valid in right.items() if not valid)
        raise BadInput(f"{path}: not a checkpoint of this package: its '{missing}' is missing or damaged")


def wrong_sizes(sizes: Mapping[str, int], settings: Settings, to_train: bool) -> list[str]:
    """In what a network of these sizes contradicts the settings, or the width of the dataset's features."""
    config = settings.config
    problems = []
    if config and sizes.get("input_size") != config.feature_size:
        problems.append(
            f"its features are {sizes.get('input_size')} wide, those of {config.path} {config.feature_size}"
        )
    # Centers are no part of a code, and training makes its own.
    for name in sizes.keys() & fields(type(settings)).keys() - {"cfg.n_clusters"}:
        wanted = settings.get(name)
        if sizes[name] != wanted and (to_train or name in settings.given):
            problems.append(f"its {name} is {sizes[name]}, the settings say {wanted}")
    return sorted(problems)


def not_its_own(content: Mapping, settings: Settings, features: Mapping | None, to_train: bool) -> list[str]:
    """In what a checkpoint of ours is not the run's: the dataset, its features and, to train on, the seed."""
    config, problems = settings.config, []
    name, seed = trained_on(content)
    if name != config.dataset and Path(name).resolve() != config.path.resolve():
        problems.append(f"its dataset is {name}, this run's {config.dataset} ({config.path})")
    elif features is not None:
        then = content["inputs"]["features"]
        if any(then[key] != features[key] for key in then.keys() & features.keys()):
            problems.append(f"it was trained on other features than {config.train.features[0]}")
    if to_train and seed != settings.seed:
        problems.append(f"its seed is {seed}, this run's {settings.seed}")
    return problems


def training_features(settings: Settings) -> dict | None:
    """The facts of the dataset's training videos; None where they are not at hand."""
    with contextlib.suppress(BadInput):
        return open_store(settings.config, settings.config.train, "disk", "cpu").facts
    return None


def trained_on(content: Mapping) -> tuple[str, int]:
    """Name of the dataset, or the path of its JSON in checkpoints of version 1.0.0, and seed."""
    dataset, settings = content.get("dataset", {}), content["settings"]
    return dataset.get("dataset", settings["data_set_config"]), settings["seed"]


def origin(content: Mapping) -> str:
    """What a checkpoint of ours was trained on, in words."""
    name, seed = trained_on(content)
    return f"{content['stage']} on {name}, seed {seed}"


def load_moments(optimizer: torch.optim.Optimizer, saved: Mapping, path: Path) -> None:
    """Take over Adam's moments and step counts; the learning rate and all else stay as they are.

    Raises:
        BadInput: they are not those of all the optimiser's parameters, or of none.
    """
    own = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = saved.get("state") if isinstance(saved, Mapping) else None
    if not isinstance(states, Mapping) or (states and states.keys() != set(range(len(parameters)))):
        raise BadInput(f"{path}: its optimizer state is not Adam's for these {len(parameters)} weights")
    moments = {}
    for number, parameter in enumerate(parameters if states else []):
        where = f"{path}: Adam's state {number}"
        state = states[number] if isinstance(states[number], Mapping) else {}
        step = state.get("step")
        step = torch.tensor(float(step)) if type(step) in (int, float) else step
        shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        found = {"step": step, **{name: state.get(name) for name in ("exp_avg", "exp_avg_sq")}}
        moments[number] = {name: checked_weight(value, f"{where}, {name}") for name, value in found.items()}
        for name, value in moments[number].items():
            if value.shape != shapes[name] or (name != "exp_avg" and (value < 0).any()):
                raise BadInput(
                    f"{where}: {name} is not Adam's for a weight of shape {tuple(parameter.shape)}"
                )
    optimizer.load_state_dict({"state": moments, "param_groups": own["param_groups"]})
