"""The recipe of features: kept, compared, shown; a test refuses features of another one."""

import h5py
import pytest
from synthetic import N_FRAMES, WIDTH

from data import FeatureStore
from formats.files import BadInput
from formats.recipe import other_recipe, read_recipe, write_recipe
from tools import inspect

LITE = {"backbone": "lite0", "weights": "a" * 16, "n_frames": 25, "versions": {"av": "1", "torch": "2"}}
OTHER = LITE | {"backbone": "timm:x", "weights": "b" * 16}
DIFFERENCE = f"backbone timm:x, not lite0; weights {'b' * 16}, not {'a' * 16}"


@pytest.fixture
def say(dataset):
    """Write a recipe into the feature files of these splits."""

    def say(recipe, *splits):
        for split in splits:
            with h5py.File(dataset.folder / f"{split}.h5", "a") as file:
                write_recipe(file, recipe)

    return say


@pytest.mark.parametrize("content", [None, 3, "", "no JSON", "[1]", "[" * 100_000, b"\xff"])
def test_an_attribute_of_that_name_may_be_anything(tmp_path, content):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        if content is not None:
            file.attrs["recipe"] = content
        assert read_recipe(file) is None
        write_recipe(file, LITE)
        assert read_recipe(file) == LITE


def test_what_makes_another_recipe():
    assert other_recipe(OTHER, LITE) == DIFFERENCE
    assert other_recipe(LITE | {"n_frames": 30}, LITE) == "n_frames 30, not 25"
    assert other_recipe(LITE | {"precision": "bfloat16"}, LITE) == "precision bfloat16, not None"
    for same in (LITE | {"versions": {"av": "2"}}, None):
        assert other_recipe(same, LITE) == other_recipe(LITE, same) == ""


def test_files_of_a_split_are_of_one_recipe(dataset, say):
    paths = [dataset.folder / f"{split}.h5" for split in ("query", "train", "test")]
    say(LITE, "train")
    assert FeatureStore(paths, N_FRAMES, WIDTH).recipe == LITE
    say(OTHER, "test")
    with pytest.raises(BadInput, match=f"test.h5: features of another recipe than the other.*: {DIFFERENCE}"):
        FeatureStore(paths, N_FRAMES, WIDTH)


def test_inspect_shows_it(dataset, say, capsys):
    say(LITE, "train")
    assert inspect.main([str(dataset.path)]) == 0
    expected = f"  recipe: backbone lite0; weights {'a' * 16}; n_frames 25; av 1, torch 2\n"
    assert capsys.readouterr().out.count(expected) == 1


@pytest.mark.parametrize(("system", "first"), [("", "pretrain"), ("bth.", "pretrain"), ("conmh.", "train")])
def test_a_test_refuses_another_one(dataset, say, start, system, first):
    say(LITE, "train", "test")
    assert start("--stage", f"{system}{first}")[0] == 0
    say(OTHER, "query")
    refused = (
        f"query.h5: features of another recipe than those that weight/1_16.pth was trained on: {DIFFERENCE}"
    )
    options = ("--stage", f"{system}test", "--weight_path", "weight/1_16.pth")
    status, out, err = start(*options)
    assert (status, out) == (2, "")
    assert refused in err
    status, out, err = start("--stage", f"{system}pipeline")
    assert (status, out) == (2, ""), "not only when hours of training are over"
    assert f"query.h5: features of another recipe than those to train on: {DIFFERENCE}" in err
    say(LITE | {"versions": {}}, "query")
    assert start(*options)[0] == 0
