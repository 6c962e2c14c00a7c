"""The dataset JSON."""

import pytest
from synthetic import ROOT

from docs.generate import SHIPPED
from engine.systems import check_blocks
from formats.dataset import find_json, load_config
from formats.files import BadInput


class TestConfig:
    @pytest.mark.parametrize("name", SHIPPED)
    def test_shipped_ones_are_valid(self, name):
        config = load_config(ROOT / "Json" / f"{name}.json")
        check_blocks(config)
        assert config.blocks["run"]["hidden_size"] in (128, 1024)

    def test_one_that_is_not_there(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for path in ("Json/mine.json", "elsewhere/theirs.json"):
            (tmp_path / path).parent.mkdir()
            (tmp_path / path).touch()
        assert find_json("Json/demo.json") == ROOT / "Json/demo.json"
        for name, meant in (
            ("Json/mien.json", "Json/mine.json"),
            ("mine", "Json/mine.json"),
            ("Json/fcv.json", "Json/fcvid.json"),
            ("elsewhere/their.json", "elsewhere/theirs.json"),
            ("Json/zzz.json", None),
        ):
            with pytest.raises(BadInput) as error:
                find_json(name)
            hint = f" (did you mean '{meant}'?)" if meant else ""
            assert str(error.value) == f"{name}: no such dataset JSON{hint}"

    def test_facts_of_the_published_datasets(self):
        facts = {
            "Anet": (2048, 30, 200, "query"),
            "fcvid": (4096, 25, 239, "database"),
            "yfcc": (4096, 25, 80, "database"),
            "yfcc-full": (4096, 25, 80, "query"),
        }
        found = {name: load_config(ROOT / "Json" / f"{name}.json") for name in facts}
        for name, expected in facts.items():
            config = found[name]
            assert (config.feature_size, config.max_frames, config.num_class, config.protocol) == expected
        anet, full = found["Anet"], found["yfcc-full"]
        assert [len(split.features) for split in (full.train, full.test, full.query)] == [9, 2, 1]
        assert [split.label_variable for split in (anet.train, anet.test, anet.query)] == [
            "labels",
            "re_label",
            "q_label",
        ]

    @pytest.mark.parametrize(("name", "num_class"), [("ucf", 101), ("hmdb", 51)])
    def test_the_training_videos_of_the_newer_datasets_are_the_database(self, name, num_class):
        config, fcvid = (load_config(ROOT / "Json" / f"{each}.json") for each in (name, "fcvid"))
        assert (config.feature_size, config.max_frames, config.num_class) == (4096, 25, num_class)
        assert (config.test.features, config.test.labels) == (config.train.features, config.train.labels)
        assert (config.query.features[0].name, config.protocol) == (f"{name}_test_feats.h5", "query")
        assert config.blocks == fcvid.blocks  # nothing else is published for them

    def test_published_keys_are_enough(self, dataset):
        dataset.drop_blocks()
        dataset.change()
        assert load_config(dataset.path).blocks == {}

    def test_names_within_the_files(self, dataset):
        del dataset.content["train_label"]
        dataset.change(label_variable={"test": "re_label"}, feature_key="rgb")
        config = load_config(dataset.path)
        assert [each.label_variable for each in (config.test, config.query)] == ["re_label", "labels"]
        assert (config.train.labels, config.feature_key) == ((), "rgb")
        dataset.change(label_variable="tags")
        assert load_config(dataset.path).query.label_variable == "tags"

    @pytest.mark.parametrize("value", ["", 5, ["a"], {"tests": "a"}, {"test": ""}, {"test": 1}, None])
    def test_wrong_names_of_variables(self, dataset, value):
        dataset.change(label_variable=value)
        with pytest.raises(BadInput, match="'label_variable' must be the variable's name, or an object"):
            load_config(dataset.path)

    def test_paths(self, dataset, monkeypatch):
        monkeypatch.setenv("FEATURES", str(dataset.folder))
        dataset.change(root="$FEATURES", train=["~/a.h5", "b.h5"])
        config = load_config(dataset.path)
        assert config.train.features[1] == dataset.folder / "b.h5"
        assert "~" not in str(config.train.features[0])

    def test_all_problems_at_once(self, dataset):
        del dataset.content["num_class"]
        dataset.change(max_frame=3, max_frames="7", train=5)
        with pytest.raises(BadInput) as error:
            load_config(dataset.path)
        for part in (
            "unknown key 'max_frame' (did you mean 'max_frames'?)",
            "'num_class' is missing",
            "'max_frames' must be a positive integer, found \"7\"",
            "'train' must be a file name",
        ):
            assert part in str(error.value)
        assert "\n" not in str(error.value)
