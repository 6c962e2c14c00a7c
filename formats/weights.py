"""Weights that may come from anywhere: read as plain data, checked, built strictly into a network."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from formats.files import BadInput


def read_checkpoint(path: str | Path) -> dict:
    """Read a ``.pth`` file as plain data: tensors, numbers, strings and containers, never code.

    Raises:
        BadInput: the file is missing, damaged, or holds anything but plain data.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{path}: not a checkpoint of plain tensors: {reason}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: a checkpoint is a dict, found {type(content).__name__}")
    return content


def read_published(source: str | Path | Mapping, name: str) -> tuple[Mapping, str]:
    """The content of a published checkpoint, and what to call it in an error.

    Args:
        source: path of a ``.pth`` file, or its content.
        name: what to call a source that is not a path.

    Raises:
        BadInput: the file cannot be read, or is one of ours.
    """
    if not isinstance(source, Mapping):
        source, name = read_checkpoint(source), str(source)
    if "stage" in source:
        found = f"a checkpoint of this package, of stage {source['stage']}"
        raise BadInput(
            f"{name}: expected a published checkpoint, found {found}: tools.codes.load_network reads it"
        )
    return source, name


def build_network(
    build: Callable[[Mapping[str, Tensor]], nn.Module],
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    where: str,
) -> nn.Module:
    """Build a network from the weights of a state dict that may come from anywhere, strictly.

    Args:
        build: makes the network from weights under our names, its sizes read off them.
        state: weights under the names of their source.
        names: from these names to ours, all of them.
        where: what to call the source in an error.

    Returns:
        The network with copies of the weights, float32.

    Raises:
        BadInput: a weight is missing, unknown, no finite dense tensor, or of a shape the others do not allow.
    """
    if not isinstance(state, Mapping):
        raise BadInput(f"{where}: expected weights by name, found {type(state).__name__}")
    problems = sorted(f"{key} is unknown" for key in state.keys() - names.keys())
    problems += sorted(f"{key} is missing" for key in names.keys() - state.keys())
    if problems:
        raise BadInput(f"{where}: not the weights of this network: {'; '.join(problems[:3])}")
    weights = {ours: checked_weight(state[key], f"{where}: {key}") for key, ours in names.items()}
    try:
        with torch.device("meta"):  # no memory goes into sizes that are not yet checked
            net = build(weights)
    except (ValueError, TypeError) as error:
        raise BadInput(f"{where}: not the weights of this network ({error})") from None
    shapes = {ours: tuple(value.shape) for ours, value in net.state_dict().items()}
    for key, ours in names.items():
        if shapes[ours] != tuple(weights[ours].shape):
            raise BadInput(
                f"{where}: {key}: expected shape {shapes[ours]}, found {tuple(weights[ours].shape)}"
            )
    net.load_state_dict(weights, assign=True)
    return net


def checked_weight(tensor: Tensor, where: str) -> Tensor:
    """A copy in float32 of a tensor that may come from anywhere."""
    if not isinstance(tensor, Tensor):
        raise BadInput(f"{where}: expected a tensor, found {type(tensor).__name__}")
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        found = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise BadInput(f"{where}: expected dense floating-point values, found {found}")
    # A view can repeat a few stored bytes a billion times; no honest weight does.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BadInput(f"{where}: expected {tensor.numel()} stored values, found a view of fewer")
    weight = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not weight.isfinite().all():
        raise BadInput(f"{where}: expected finite values, found NaN or infinity")
    return weight
