"""Weights that may come from anywhere: read as plain data, checked, built strictly into a network."""

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from formats.files import BadInput, write_whole

WRAPPERS = ("state_dict", "model_state_dict")  # keys under which files keep a state dict
PREFIXES = ("module.", "_orig_mod.")  # of names: left by DataParallel and torch.compile


def save_checkpoint(path: Path, content: Mapping) -> None:
    """Write a checkpoint, whole or not at all, with a digest of its ``model`` (a state dict).

    Raises:
        BadInput: it cannot be written; the previous one, if any, is intact.
    """
    content = {**content, "digest": digest(*content["model"].values())}
    write_whole(path, lambda temporary: torch.save(content, temporary))


def read_checkpoint(path: str | Path, whole: bool = True) -> dict:
    """Read a ``.pth`` file as plain data: tensors, numbers, strings and containers, never code.

    Args:
        path: of the file.
        whole: read all of it and verify its checksums; else tensors are not read before they are used.

    Raises:
        BadInput: the file is missing, damaged, or holds anything but plain data.
    """
    try:
        archive = zipfile.is_zipfile(path)  # else of a format before PyTorch 1.6, without checksums
        if archive and whole:
            verify_checksums(path)
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive and not whole)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such checkpoint") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: a folder, expected a checkpoint") from None
    except zipfile.BadZipFile as error:
        raise BadInput(f"{path}: a damaged checkpoint: {error}") from None
    except pickle.UnpicklingError:
        expected = "expected tensors, numbers and text alone: anything else could run code, and is not read"
        raise BadInput(f"{path}: not a checkpoint: {expected}") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise BadInput(f"{path}: not a checkpoint, or a damaged one ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: a checkpoint is a dict, found {type(content).__name__}")
    if whole and "digest" in content:
        model = content.get("model")
        tensors = list(model.values()) if isinstance(model, Mapping) else [None]
        if not all(isinstance(each, Tensor) for each in tensors) or digest(*tensors) != content["digest"]:
            raise BadInput(f"{path}: its weights are not those that were saved (their digest differs)")
    return content


def verify_checksums(path: str | Path) -> None:
    """Read every part of a zip archive; ``torch.load`` would take a flipped bit for a weight.

    Raises:
        BadZipFile: one is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of its part {damaged} is wrong")


def digest(*tensors: Tensor) -> str:
    """A fingerprint of tensors, 16 hexadecimal digits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def read_published(
    source: str | Path | Mapping, name: str, wrappers: tuple[str, ...] = WRAPPERS
) -> tuple[dict[str, Tensor], str]:
    """The state dict of a published checkpoint, and what to call it in an error.

    It may be wrapped, and its names may bear a prefix (``PREFIXES``).

    Args:
        source: path of a ``.pth`` file, or its content.
        name: what to call a source that is not a path.
        wrappers: keys under which it may be kept.

    Raises:
        BadInput: the file cannot be read, is one of ours, or holds no state dict.
    """
    if not isinstance(source, Mapping):
        source, name = read_checkpoint(source), str(source)
    if "stage" in source:
        found = f"a checkpoint of this package, of stage {source['stage']}"
        raise BadInput(
            f"{name}: expected a published checkpoint, found {found}: tools.codes.load_network reads it"
        )
    for key in wrappers:
        source = source.get(key, source)
        if not isinstance(source, Mapping):
            raise BadInput(f"{name}: '{key}' is no state dict")
    state = {}
    for key, value in source.items():
        plain = str(key)
        while plain.startswith(PREFIXES):
            plain = plain.partition(".")[2]
        if plain in state:
            raise BadInput(f"{name}: {plain} stands there twice")
        state[plain] = value
    return state, name


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
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise BadInput(f"{where}: not the weights of this network: {'; '.join(problems[:5])}{more}")
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
