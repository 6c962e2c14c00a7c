"""One thread, and the program as a user starts it, in this process or in one of its own."""

import os

# Before torch is loaded: two threads of which one must wait for its core cost up to twenty times.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"

import subprocess
import sys

import pytest
from synthetic import ROOT, Dataset


@pytest.hookimpl(optionalhook=True)  # pytest -o addopts= needs no xdist
def pytest_xdist_auto_num_workers(config):
    """Three processes, some of which wait, for the whole suite; in this one, what the command line names."""
    return 3 if config.args_source is config.ArgsSource.TESTPATHS else 0


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    return Dataset(folder)


@pytest.fixture
def start(dataset, tmp_path, monkeypatch, capsys):
    """Run ``python run.py`` in this process, in a folder of its own; gives (status, stdout, stderr)."""
    from engine.launch import launch
    from pipeline import train_model
    from run import settings

    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "argv", ["run.py"])

    def run(*arguments: str):
        capsys.readouterr()
        form = settings | {"data_set_config": str(dataset.path), "device": "cpu"}
        status = launch(train_model, form, [str(each) for each in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def spawn(dataset, tmp_path):
    """Start ``python run.py`` as a process of its own in ``tmp_path/work``."""

    def popen(*arguments: str) -> subprocess.Popen:
        (tmp_path / "work").mkdir(exist_ok=True)
        command = [
            sys.executable,
            str(ROOT / "run.py"),
            "--data_set_config",
            str(dataset.path),
            "--device",
            "cpu",
        ]
        return subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=tmp_path / "work",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return popen
