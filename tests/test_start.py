"""The first moments: what a machine may lack, and a start from another folder than the project's."""

import ast
import importlib.util
import os
import shutil
import sys

import pytest
from synthetic import ROOT

from engine.launch import launch
from formats.dataset import find_json
from pipeline import train_model
from run import settings

FIRST = ROOT / "engine" / "__init__.py"


@pytest.mark.parametrize("path", ["run.py", "engine/__init__.py", "tools/__init__.py"])
def test_an_older_python_can_read_what_refuses_it(path):
    ast.parse((ROOT / path).read_text(), feature_version=(3, 7))


@pytest.mark.parametrize(
    ("where", "name", "value", "told"),
    [
        (sys, "version_info", (3, 10, 2), f"this needs Python 3.11 or newer, found {sys.version.split()[0]}"),
        (os, "name", "nt", "this needs Linux or macOS; on Windows, its Subsystem for Linux (WSL)"),
        (importlib.util, "find_spec", {"numpy": 1, "h5py": 2, "scipy": 3}.get,
         "torch, tqdm not installed: pip install -r requirements.txt"),
    ],
)  # fmt: skip
def test_what_is_missing_is_one_line(monkeypatch, capsys, where, name, value, told):
    code = compile(FIRST.read_text(), FIRST, "exec")  # pytest and pathlib want the true ones meanwhile
    with monkeypatch.context() as patch:
        patch.setattr(where, name, value)
        with pytest.raises(SystemExit) as end:
            exec(code, {})
    assert (end.value.code, capsys.readouterr().err) == (2, f"error: {told}\n")


def test_a_start_from_another_folder(tmp_path, monkeypatch, capsys):
    """The project's dataset is found by its name; what a run leaves lands where it was started."""
    monkeypatch.chdir(tmp_path)
    options = ["--stage", "pretrain", "--max_iter", "0", "0", "--hidden_size", "64", "--device", "cpu"]
    assert launch(train_model, settings, options) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"run 1: pretrain on {ROOT / 'Json/demo.json'}, seed 3346")
    assert f"in {tmp_path}, log log/1.txt" in out
    assert sorted(os.listdir(tmp_path)) == ["demo", "log", "weight"]
    shutil.copytree(ROOT / "Json", "Json")
    assert launch(train_model, settings, options) == 0
    assert capsys.readouterr().out.startswith("run 2: pretrain on Json/demo.json, seed 3346")


def test_a_dataset_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.json").touch()
    assert find_json("~/mine.json") == find_json("$HOME/mine.json") == tmp_path / "mine.json"
