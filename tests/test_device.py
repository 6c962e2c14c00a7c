"""The device of a run by its name, on machines with GPUs or without (here: what they would say)."""

import pytest
import torch

from engine.device import find_device, open_device
from formats.files import BadInput
from pretrain import WSCHSettings


@pytest.fixture
def gpus(monkeypatch):
    """Two of them; gives the list of those that were made the current one."""
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Card {number}")
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    return taken


def test_without_gpus():
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(BadInput, match="'device' is cuda:1, but this machine has none that PyTorch"):
        find_device("cuda:1")


def test_one_of_several(gpus):
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:0") == torch.device("cuda", 0)
    assert open_device(WSCHSettings(device="cuda:1")) == torch.device("cuda", 1)
    assert gpus == [torch.device("cuda", 1)]


@pytest.mark.usefixtures("gpus")
def test_one_that_is_not_there():
    with pytest.raises(BadInput) as error:
        find_device("cuda:2")
    there = "cuda:0 (Card 0), cuda:1 (Card 1)"
    assert str(error.value) == f"'device' is cuda:2, but this machine has {there}"


def test_ranks_take_one_each(gpus, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="'device' is cuda:1, but each of several ranks takes its own GPU"):
        open_device(WSCHSettings(device="cuda:1"))
    assert open_device(WSCHSettings(device="cuda")) == torch.device("cuda")
    assert gpus == []
