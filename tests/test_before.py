"""Files of version 1.0.0 (``tests/before``) load, resume and test: checkpoints, logs, prepared files."""

import shutil

import pytest
from synthetic import ROOT, json_lines

from engine.launch import launch
from pipeline import train_model
from run import settings


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The program in a copy of that folder; gives what it printed."""
    shutil.copytree(ROOT / "tests/before", tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")

    def start(*arguments):
        form = settings | {"data_set_config": "set/synthetic.json", "device": "cpu"}
        status = launch(train_model, form, list(arguments))
        out, err = capsys.readouterr()
        assert (status, err) == (0, "")
        return out

    return start


def losses(number):
    """Every loss term of every epoch."""
    epochs = [line["losses"] for line in json_lines(f"log/{number}.jsonl") if line["event"] == "epoch"]
    return [value for epoch in epochs for terms in epoch.values() for value in terms.values()]


def result(number):
    return next(line for line in json_lines(f"log/{number}.jsonl") if line["event"] == "result")


# BTH's dropout has drawn from other bits since.
@pytest.mark.parametrize(("number", "undisturbed", "tolerance"), [(8, 1, 1e-3), (11, 6, 0.05)])
def test_an_unfinished_run_ends_like_an_undisturbed_one(run, number, undisturbed, tolerance):
    before = losses(number)
    run("--resume", str(number))
    assert losses(number)[: len(before)] == before
    # Another processor may round differently from the one that made the files.
    assert losses(number) == pytest.approx(losses(undisturbed), rel=tolerance)


def test_a_resumed_pipeline_goes_on_to_its_table(run):
    run("--resume", "8")
    assert result(10)["others"]["pre-trained"] == pytest.approx(result(3)["others"]["pre-trained"], abs=0.05)


@pytest.mark.parametrize(
    ("stage", "weights", "log", "row"),
    [
        ("test", "1_16.pth", 3, "pre-trained"),
        ("bth.test", "6_16.pth", 7, None),
        ("bth.test", "4_16.pth", 7, "mask only"),
    ],
)
def test_networks_are_tested_with_the_same_result(run, stage, weights, log, row):
    run("--stage", stage, "--weight_path", f"weight/{weights}")
    then = result(log)["mAP"] if row is None else result(log)["others"][row]
    assert result(12)["mAP"] == pytest.approx(then, abs=0.02)


def test_training_starts_from_them(run):
    assert "starts from weight/1_16.pth" in run("--stage", "train", "--weight_path", "weight/1_16.pth")
    assert "8 anchors of weight/anchors.h5" in run("--stage", "bth.train")


def test_prepared_files_are_up_to_date(run):
    assert run("--stage", "bth.prepare").count("up to date, kept") == 3
