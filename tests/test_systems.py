"""A system that the engine has never heard of, outside the package: a linear network, one training stage."""

import json
import re
import sys

import pytest
import torch
from synthetic import N_FRAMES, WIDTH, json_lines, killed

import engine.loop
from engine.systems import resolve, stage_names, system_of
from formats import dataset as dataset_json
from formats.files import BadInput

TOY = {
    "__init__": '"""One folder: settings, network, a training stage, a test."""',
    "network": """
import torch
from torch import nn
from formats.weights import build_network
from metrics import binarize


class Toy(nn.Module):
    def __init__(self, input_size, hashcode_size):
        super().__init__()
        self.sizes = {"input_size": input_size, "hashcode_size": hashcode_size}
        self.layer = nn.Linear(input_size, hashcode_size)
        self.back = nn.Linear(hashcode_size, input_size)

    def forward(self, frames):
        return self.back(binarize(self.layer(frames)))

    def hash(self, frames):
        return binarize(self.layer(frames)).mean(1).sign()


def from_state(state, name):
    names = {key: key for key in Toy(1, 1).state_dict()}
    return build_network(lambda weights: Toy(*weights["layer.weight"].shape[::-1]), state, names, name)


load_published = from_state
""",
    "settings": """
from dataclasses import dataclass, field
from typing import ClassVar
import torch
from engine.settings import SystemSettings, positive, setting
from engine.systems import System
from toy import network


@dataclass(frozen=True)
class Own:
    scale: float = setting(2.0, "weight of the only loss", positive, "above 0")


@dataclass(frozen=True, kw_only=True)
class ToySettings(SystemSettings):
    block: ClassVar[str] = "toy"
    fresh_stages: ClassVar[tuple[str, ...]] = ("toy.train",)
    stage: str = setting("toy.train", "what to run")
    batch_size: int = setting(4, "videos")
    hidden_size: int = setting(1, "unused")
    lr: float = setting(0.01, "the toy's own learning rate", positive, "above 0")
    ks: tuple[int, ...] = setting((5, 20), "cuts")
    max_iter: tuple[int, int] = setting((3, 0), "epochs", lambda v: min(v) >= 0, "two numbers")
    toy: Own = field(default_factory=Own)


def fresh_network(settings, input_size):
    torch.manual_seed(settings.seed)
    return network.Toy(input_size, settings.hashcode_size)


SYSTEM = System("Toy", ToySettings, stages=("toy.train", "toy.test"), tested=("toy.train",),
                network=network, fresh_network=fresh_network)
""",
    "train": """
import numpy as np
import torch
from engine.device import environment, open_device
from engine.feed import open_training_set
from engine.loop import Pass, Stage, run_stage
from toy.settings import fresh_network


def train_model(settings, run):
    device = open_device(settings)
    store = open_training_set(settings, device)
    net = fresh_network(settings, settings.config.feature_size).to(device)

    def draw(rng):
        order = rng.permutation(len(store))
        return lambda places: (store.read(order[places]),)

    def loss(part, frames):
        return {"error": settings.toy.scale * (net(frames) - frames).square().mean()}

    run.start(store.place, **environment(device), videos=len(store))
    adam = torch.optim.Adam(net.parameters(), settings.lr)
    passes = [Pass("frames", draw, loss)]
    run_stage(run, Stage(net, adam, store, passes, settings.max_iter[0], lambda _: settings.lr))
    return run.end()
""",
    "test": """
from engine.evaluation import run_test
from toy.settings import SYSTEM


def train_model(settings, run, weights=None):
    return run_test(SYSTEM, settings, run, weights)
""",
}


@pytest.fixture
def toy(tmp_path, monkeypatch, dataset):
    """The toy's folder, and its one line where systems are listed."""
    folder = tmp_path / "elsewhere" / "toy"
    folder.mkdir(parents=True)
    for name, text in TOY.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setitem(dataset_json.SYSTEMS, "toy", "toy.settings")
    dataset.change(toy={"batch_size": 8, "hashcode_size": 16})
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "toy"]:
        del sys.modules[name]


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.usefixtures("toy")
class TestToy:
    def test_trains_and_is_tested(self, start, tmp_path):
        assert start("--stage", "toy.train")[0] == 0
        losses = [
            line["losses"]["frames"]["error"] for line in json_lines(tmp_path / "work/log/1.jsonl")[2:-1]
        ]
        assert len(losses) == 3
        assert losses[-1] < losses[0]
        status, out, err = start("--stage", "toy.test")
        assert (status, err) == (0, "")
        assert "synthetic, 16 bits, 6 queries, 104 videos" in out
        assert list(json_lines(tmp_path / "work/log/2.jsonl")[-2]["mAP"]) == ["5", "20"]

    def test_resumes_bit_for_bit(self, start, tmp_path, monkeypatch):
        start("--stage", "toy.train")
        save, calls = engine.loop.save_checkpoint, []

        def stop(path, content):
            save(path, content)
            calls.append(path)
            if len(calls) == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(engine.loop, "save_checkpoint", stop)
            assert start("--stage", "toy.train", "--toy.scale", 2)[0] == 130
        assert start("--resume")[0] == 0
        one, other = (weights(tmp_path / f"work/weight/{n}_16.pth") for n in (1, 2))
        assert all(torch.equal(value, other[name]) for name, value in one.items())

    def test_settings_are_its_own(self, dataset, start, capsys):
        settings = resolve({"data_set_config": str(dataset.path), "cfg": {"a": 1.0}}, {"stage": "toy.train"})
        assert (settings.lr, settings.batch_size, settings.toy.scale) == (0.01, 8, 2.0)
        with pytest.raises(SystemExit):
            start("--stage", "toy.train", "--help")
        text = capsys.readouterr().out
        assert "weight of the only loss" in text
        assert "--cfg" not in text
        assert "unknown key '--cfg.a'" in start("--stage", "toy.train", "--cfg.a", 1)[2]
        dataset.change(toy={"scale": -1})
        assert "in 'toy': 'scale' must be above 0, found -1" in start()[2]  # whichever stage is run


@pytest.mark.parametrize(
    ("line", "lack"),
    [
        *((f"    {name}: .*", f"a default of '{name}'")
          for name in ("batch_size", "hidden_size", "lr", "ks", "max_iter")),
        (r'tested=\("toy.train",\),', "'tested', its stages to test"),
    ],
)  # fmt: skip
def test_what_a_system_lacks_is_said(toy, start, tmp_path, line, lack):
    path = tmp_path / "elsewhere/toy/settings.py"
    path.write_text(re.sub(line, "", path.read_text()))
    assert start("--stage", "pretrain") == (2, "", f"error: system Toy lacks {lack}\n")


def test_an_unlisted_system_is_unknown(dataset):
    assert "toy.train" not in stage_names()
    with pytest.raises(BadInput, match="'stage' must be one of pipeline"):
        system_of("toy.train")
    dataset.content["toy"] = {}
    dataset.path.write_text(json.dumps(dataset.content))
    with pytest.raises(BadInput, match="unknown key 'toy'"):
        dataset_json.load_config(dataset.path)


class TestDatasetIsReadOnce:
    def test_an_edit_does_not_reach_a_run(self, dataset):
        settings = resolve({"data_set_config": str(dataset.path)}, {})
        dataset.path.write_text("{")
        assert settings.config.feature_size == WIDTH

    def test_another_one_is_refused_on_resume(self, start, dataset, tmp_path, monkeypatch):
        monkeypatch.setattr("pretrain.run_stage", killed)
        assert start()[0] == 130
        record = json_lines(tmp_path / "work/log/1.jsonl")[0]
        assert record["dataset"]["max_frames"] == N_FRAMES
        assert "run" not in record["dataset"]
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path / "work")
        dataset.change(num_class=5)
        status, _, err = start("--resume")
        assert status == 2
        assert "--resume: run 1 was started with other settings: num_class was 4, is 5" in err
