"""The door for Python: a network from a file, codes of videos, codes as bits. No stage, no JSON, no log.

from tools.codes import hash_videos, load_network, pack
net = load_network("weight/2_64.pth")
codes = hash_videos(net, features)
packed = pack(codes)
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data import FeatureStore, OtherShape
from engine.checkpoint import OF_UNKNOWN, check_ours, origin
from engine.device import find_device
from engine.systems import system_of, systems
from formats.bits import pack, unpack
from formats.files import BadInput, expand, progress
from formats.weights import read_checkpoint

__all__ = ["hash_videos", "load_network", "pack", "unpack"]


def load_network(path: str | Path, device: str = "auto") -> nn.Module:
    """The network of a checkpoint, ours or published, of whichever system.

    Args:
        path: a ``.pth`` file.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto``: the best there is.

    Returns:
        The network in eval mode, without gradients. It says of itself: ``sizes``, ``system`` (its name),
        ``origin`` (what it was trained on, in words) and ``n_frames`` (of the videos that it was trained on;
        None: a published checkpoint, which does not say).

    Raises:
        BadInput: there is no such file or device, or the file holds no network of any system.
    """
    path = expand(str(path))
    content = read_checkpoint(path)
    net = published_network(content, str(path)) if "stage" not in content else our_network(content, path)
    return net.to(find_device(device)).eval().requires_grad_(False)


def our_network(content: Mapping, path: Path) -> nn.Module:
    """The network of a checkpoint of this package."""
    try:
        system = system_of(content["stage"])
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    check_ours(content, path)
    net = system.network.from_state(content.get("model"), str(path))
    net.system, net.origin = system.name, origin(content)
    net.n_frames = content["inputs"]["features"]["shape"][1]
    return net


def published_network(content: Mapping, name: str) -> nn.Module:
    """The network of a published checkpoint: the first system whose weights these are.

    Raises:
        BadInput: no system's.
    """
    reasons = []
    for system in systems():
        try:
            net = system.network.load_published(content, name=system.name)
        except BadInput as error:
            reasons.append(str(error))
        else:
            net.system, net.origin, net.n_frames = system.name, OF_UNKNOWN, None
            return net
    raise BadInput(f"{name}: no network of any system: {'; '.join(reasons)}")


def hash_videos(
    net: nn.Module, features: np.ndarray | Tensor | str | Path, batch_size: int = 128
) -> np.ndarray:
    """Hash codes of videos.

    Args:
        net: of ``load_network``, or any WSCH or BTH network.
        features: frame features (N, L, D), float16, float32 or float64, or an HDF5 file that holds them as
            ``feats``, which is read a batch at a time.
        batch_size: videos at a time; it changes no code.

    Returns:
        Codes in {-1, 0, +1}, int8, (N, b).

    Raises:
        BadInput: the file is missing or damaged, the width is not the network's, the number of frames not
            that of its training, the type is another, or a value or a code is not finite.
    """
    width, n_frames = net.sizes["input_size"], getattr(net, "n_frames", None)
    try:
        read, n_videos = reader(features, n_frames, width)
    except OtherShape as error:
        whose = f"the network ({getattr(net, 'origin', OF_UNKNOWN)}) was trained on width {width}"
        raise BadInput(f"{error}; {whose}; name one trained on these features") from None
    device = next(net.parameters()).device
    codes = []
    with torch.no_grad():
        for start in progress(range(0, n_videos, batch_size), "hashing"):
            frames = read(np.arange(start, min(start + batch_size, n_videos)))
            part = net.hash(frames.to(device).float()).cpu()
            if part.isnan().any():
                name = features if isinstance(features, str | Path) else "features"
                video = start + int(part.isnan().any(1).nonzero()[0])
                raise BadInput(f"{name}: video {video}: its code is not finite (too large for float32?)")
            codes.append(part.char().numpy())
    return np.concatenate(codes)


def reader(
    features: np.ndarray | Tensor | str | Path, n_frames: int | None, width: int
) -> tuple[Callable[[np.ndarray], Tensor], int]:
    """How to read neighbouring videos, seen to be finite, and how many there are; errors as above."""
    if isinstance(features, str | Path):
        store = FeatureStore([expand(str(features))], n_frames, width, "disk")
        return store.read, len(store)
    if not isinstance(features, Tensor):
        features = np.asarray(features)
        features = np.ascontiguousarray(features, features.dtype.newbyteorder("="))  # all that torch takes
    shape = tuple(features.shape)
    if len(shape) != 3 or 0 in shape or shape[1:] != (n_frames or shape[1], width):
        expected = f"(N, {n_frames or 'L'}, {width}): videos, frames, feature width"
        raise OtherShape(f"features have shape {shape}, the network expects {expected}")
    if str(features.dtype).removeprefix("torch.") not in ("float16", "float32", "float64"):
        raise BadInput(f"features are {features.dtype}, expected float16, float32 or float64")
    features = torch.as_tensor(features)

    def read(rows: np.ndarray) -> Tensor:
        frames = features[rows[0] : rows[-1] + 1].float()
        if not frames.isfinite().all():
            video, frame = (~frames.isfinite().all(-1)).nonzero()[0].tolist()
            raise BadInput(f"features: video {rows[0] + video}, frame {frame}: not finite")
        return frames

    return read, len(features)
