"""Where a run computes: the device, its threads, TF32, and the signals that ask it to stop."""

import platform
import signal
import subprocess
from pathlib import Path
from types import FrameType

import torch

from engine import ranks
from engine.settings import DEVICES, Settings, is_device
from formats.files import BadInput
from formats.processor import has_bfloat16


def open_device(settings: Settings) -> torch.device:
    """The device of a run, set up as it asks for.

    Raises:
        BadInput: the device that was asked for is not there, or cannot compute in the precision asked for.
    """
    device = find_device(settings.device)
    if device.type == "cpu" and settings.precision == "bfloat16" and not has_bfloat16():
        raise BadInput("'precision' is bfloat16, but this processor has no instructions for it; set float32")
    if ranks.n_ranks() > 1 and device.type == "mps":
        raise BadInput("'device' is mps, on which ranks exchange nothing; set cpu, or start one process")
    if device.type == "cuda":
        if ranks.local_rank() >= (n_gpus := torch.cuda.device_count()):
            raise BadInput(f"'device' is cuda, but this machine has {n_gpus} GPUs for more ranks than that")
        if device.index is not None:
            if ranks.n_ranks() > 1:
                raise BadInput(f"'device' is {device}, but each of several ranks takes its own GPU; set cuda")
            torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    return device


def find_device(name: str) -> torch.device:
    """A device by name: ``auto`` takes CUDA, then MPS, then the CPU; ``cuda:1`` is the second GPU.

    Raises:
        BadInput: the device that was asked for is not there.
    """
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    if name == "auto":
        name = next(name for name, is_there in available.items() if is_there())
    elif not is_device(name):
        raise BadInput(f"'device' must be {DEVICES}, found {name}")
    kind, _, number = name.partition(":")
    if not available[kind]():
        raise BadInput(
            f"'device' is {name}, but this machine has none that PyTorch {torch.__version__} can use"
        )
    if number and int(number) >= (n_gpus := torch.cuda.device_count()):
        there = ", ".join(f"cuda:{each} ({torch.cuda.get_device_name(each)})" for each in range(n_gpus))
        raise BadInput(f"'device' is {name}, but this machine has {there}")
    return torch.device(name)


def environment(device: torch.device) -> dict:
    """What a run log should say of the machine and the code."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit this code stands at, if it is a checkout and git is there."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class Interrupted(Exception):
    """A signal asked the run to stop, and what it had done is saved."""


class StopSignals:
    """Turns the first SIGINT or SIGTERM into a request that the loop reads; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.number = 0  # of the signal that came, 0 for none

    def __enter__(self) -> "StopSignals":
        self.number = 0
        self.previous = {
            number: signal.signal(number, self.request) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def request(self, number: int, _: FrameType | None) -> None:
        """Note the signal; from now on SIGINT does what it does by default."""
        self.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


STOP = StopSignals()


def check_stop() -> None:
    """Stop here if a signal asked for it; for places where nothing needs saving.

    Raises:
        Interrupted: it did.
    """
    if STOP.number:
        raise Interrupted
