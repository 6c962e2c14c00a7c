"""The one checkpoint format, whole or not at all, and strict loading: every disagreement is named.

A checkpoint is a dict of plain data: ``stage``, ``sizes``, ``settings``, ``inputs`` (what the run read),
``model`` (state dict), ``optimizer`` (Adam), ``position`` (epoch, pass, batch: where to go on), ``sums`` and
``losses`` (of the pass and the epoch under way), ``seconds`` (of the epoch) and ``logs`` (lengths of both
logs). A published checkpoint is accepted where weights are read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from engine.settings import Settings
from formats.files import BadInput, expand, write_whole
from formats.weights import checked_weight, read_checkpoint


@dataclass(frozen=True)
class Weights:
    """A network read from a checkpoint, and what the checkpoint says of it."""

    path: Path
    net: nn.Module
    optimizer: Mapping | None  # Adam's state
    stage: str | None  # None: a published checkpoint, which does not say


def save_checkpoint(path: Path, content: Mapping) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        BadInput: it cannot be written; the previous one, if any, is intact.
    """
    write_whole(path, lambda temporary: torch.save(content, temporary))


def find_weights(settings: Settings, stages: tuple[str, ...]) -> Path:
    """The checkpoint that ``weight_path`` means: the file, or in a folder the newest finished one that fits.

    Args:
        settings: of the run.
        stages: the stages whose checkpoints fit.

    Raises:
        BadInput: there is none.
    """
    path = expand(settings.weight_path or settings.result_weight_dir)
    if not path.is_dir():
        return path
    pattern = f"<run>_{settings.hashcode_size}.pth"
    names = {int(match[1]): found for found in path.iterdir()
             if (match := re.fullmatch(rf"([0-9]+)_{settings.hashcode_size}\.pth", found.name))}  # fmt: skip
    for _, found in sorted(names.items(), reverse=True):
        if read_checkpoint(found).get("stage") in stages:
            return found
    wanted = f"{' or '.join(stages)} with {settings.hashcode_size} bits ({pattern})"
    raise BadInput(f"{path}: no finished checkpoint of {wanted}; set weight_path")


def load_weights(
    path: Path,
    settings: Settings,
    stages: tuple[str, ...],
    network: ModuleType,
    to_train: bool = False,
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
        net = network.load_published(content, str(path))
    elif stage not in stages:
        raise BadInput(f"{path}: a checkpoint of stage {stage}, expected one of {' or '.join(stages)}")
    elif not isinstance(content.get("optimizer"), Mapping):
        raise BadInput(f"{path}: no state of the optimizer")
    else:
        net = network.from_state(content.get("model"), str(path))
    sizes, config = net.sizes, settings.config
    problems = []
    if sizes["input_size"] != config.feature_size:
        problems.append(
            f"its features are {sizes['input_size']} wide, those of {config.path} {config.feature_size}"
        )
    for name in sizes.keys() - {"input_size"}:
        wanted = settings.get(name)
        if sizes[name] != wanted and (to_train or name in settings.given):
            problems.append(f"its {name} is {sizes[name]}, the settings say {wanted}")
    if problems:
        raise BadInput(f"{path}: {'; '.join(sorted(problems))}")
    return Weights(path, net, content.get("optimizer"), stage)


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
