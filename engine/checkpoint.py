"""The one checkpoint format, whole or not at all, and strict loading: every disagreement is named.

A checkpoint is a dict of plain data: ``stage``, ``sizes``, ``settings``, ``model`` (state dict),
``optimizer`` (Adam), ``position`` (epoch, pass, batch: where to go on), ``sums`` and ``losses`` (of the pass
and the epoch under way), ``seconds`` (of the epoch) and ``logs`` (lengths of the run's logs). A published
checkpoint is accepted where weights are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from data import BadInput, DatasetConfig, expand, read_checkpoint, write_whole
from engine.settings import Settings


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

    def write(temporary: Path) -> None:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(
                28, f"No space left on device, or the disk failed ({str(error).splitlines()[0]})"
            ) from None

    write_whole(path, write)


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
    pattern = f"*_{settings.hashcode_size}.pth"
    numbered = [(int(found.stem.split("_")[0]), found) for found in path.glob(pattern)
                if found.stem.split("_")[0].isdigit()]  # fmt: skip
    for _, found in sorted(numbered, reverse=True):
        if read_checkpoint(found).get("stage") in stages:
            return found
    wanted = f"{' or '.join(stages)} with {settings.hashcode_size} bits ({pattern})"
    raise BadInput(f"{path}: no finished checkpoint of {wanted}; set weight_path")


def load_weights(
    path: Path, settings: Settings, config: DatasetConfig, stages: tuple[str, ...], system: ModuleType
) -> Weights:
    """Read a network, ours or published, every size off its weights; what contradicts the settings is named.

    Args:
        path: the checkpoint.
        settings: of the run; a size that the user or the dataset JSON stated must be the checkpoint's.
        config: the dataset, whose features must be as wide.
        stages: the stages whose checkpoints are accepted.
        system: the module of the network, ``model`` or ``bth.model``.

    Raises:
        BadInput: the file is no such checkpoint, or contradicts settings or dataset.
    """
    content = read_checkpoint(path)
    stage = content.get("stage")
    if "stage" not in content:
        net = system.load_published(content, str(path))
    elif stage in stages:
        net = system.from_state(content.get("model", {}), str(path))
    else:
        raise BadInput(f"{path}: a checkpoint of stage {stage}, expected one of {' or '.join(stages)}")
    sizes = net.sizes
    problems = []
    if sizes["input_size"] != config.feature_size:
        problems.append(
            f"its features are {sizes['input_size']} wide, those of {config.path} {config.feature_size}"
        )
    for name in sizes.keys() & set(settings.given):
        wanted = settings.cfg.n_clusters if name == "cfg.n_clusters" else getattr(settings, name)
        if sizes[name] != wanted:
            problems.append(f"its {name} is {sizes[name]}, the settings say {wanted}")
    if problems:
        raise BadInput(f"{path}: {'; '.join(sorted(problems))}")
    return Weights(path, net, content.get("optimizer"), stage)


def load_moments(optimizer: torch.optim.Optimizer, saved: Mapping, path: Path) -> None:
    """Take over Adam's moments and step counts; the learning rate and all else stay as they are.

    Raises:
        BadInput: they are not those of the optimiser's parameters.
    """
    own = optimizer.state_dict()
    try:
        optimizer.load_state_dict({"state": saved["state"], "param_groups": own["param_groups"]})
        fit = all(
            state[name].shape == parameter.shape
            for parameter, state in optimizer.state.items()
            for name in ("exp_avg", "exp_avg_sq")
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        fit = False
    if not fit:
        raise BadInput(f"{path}: its optimizer state is not Adam's for these weights")
