"""The JSON of a new dataset: settings by the stated rule, accepted by every system."""

import json
from pathlib import Path

import pytest

from engine.systems import resolve, systems
from formats.dataset import load_config
from tools.newdataset import dataset_json


def content(n_train, n_test=300, n_classes=43):
    counts = {"train": n_train, "test": n_test, "query": 150}
    return json.loads(dataset_json("clips", Path("features/clips"), counts, n_classes, (25, 1280)))


def test_facts():
    found = content(438)
    assert found["train"] == "features/clips/train_feats.h5"
    assert found["query_label"] == "features/clips/query_labels.mat"
    assert (found["num_class"], found["hidden_size"], found["max_frames"]) == (43, 1280, 25)


def test_a_small_set_has_what_gtsrb_was_tuned_to():
    found = content(438)
    assert found["run"] == {"max_iter": [40, 80], "lr": 5e-4, "batch_size": 128, "hidden_size": 256,
                            "decoder_size": 256, "cfg": {"n_clusters": 84}}  # fmt: skip
    assert found["bth"] == {"max_iter": [50, 50], "batch_size": 16, "n_anchors": 84}
    assert found["conmh"] == {"max_iter": 100, "lr": 3e-4, "batch_size": 32}


def test_a_large_set_has_what_is_published():
    found = content(45_585, 45_600)
    assert found["run"] == {"cfg": {"n_clusters": 800}}
    assert found["bth"] == {"n_anchors": 800}
    assert found["conmh"] == {}


@pytest.mark.parametrize(
    ("n_train", "n_test", "n_clusters", "ks"),
    [(6, 3, 6, [3]), (16, 5, 16, [5]), (100, 64, 40, [5, 20, 40, 60]), (10, 99, 10, [5, 20, 40, 60, 80])],
)
def test_cuts_and_centers_that_the_set_has_room_for(n_train, n_test, n_clusters, ks):
    found = content(n_train, n_test)
    assert found["run"]["cfg"]["n_clusters"] == found["bth"]["n_anchors"] == n_clusters
    assert found["run"]["ks"] == ks
    assert [k for k in found["bth"]["ks"] if k != 10] == ks
    assert found["conmh"]["ks"] == found["bth"]["ks"]


@pytest.mark.parametrize("n_classes", [0, 43])
@pytest.mark.parametrize("n_train", [1, 438, 10_000])
@pytest.mark.parametrize("system", systems(), ids=lambda system: system.name)
def test_every_system_takes_it(tmp_path, system, n_train, n_classes):
    path = tmp_path / "clips.json"
    path.write_text(json.dumps(content(n_train, 4, n_classes)))
    assert load_config(path).num_class == n_classes
    settings = resolve({"data_set_config": str(path)}, {"stage": system.stages[0]})
    assert settings.hidden_size == (1024 if n_train == 10_000 and system.name == "WSCH" else 256)
    assert settings.ks == (4,)
