"""Checkpoints: which one a run takes, damage that is found, forms in which others publish theirs."""

import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from synthetic import GOLDEN, json_lines, write_features

import conmh.model
import model
from formats.files import BadInput
from formats.weights import digest, read_checkpoint, save_checkpoint


class TestWhoseWeights:
    """With ``weight_path`` unset, only a network of the run's own dataset, system, sizes and (train) seed."""

    @pytest.fixture
    def other(self, start, dataset):
        """A newer network of another dataset with the same widths."""
        assert start("--stage", "pretrain")[0] == 0
        dataset.change(dataset="other")
        assert start("--stage", "pretrain")[0] == 0
        dataset.change(dataset="synthetic")

    @pytest.mark.usefixtures("other")
    @pytest.mark.parametrize("stage", ["train", "test"])
    def test_another_datasets_is_passed_over(self, start, stage):
        assert "weight/1_16.pth (pretrain on synthetic, seed 3346)" in start("--stage", stage)[1]

    @pytest.mark.usefixtures("other")
    def test_where_there_is_no_other_the_nearest_is_named(self, start):
        os.remove("weight/1_16.pth")
        status, out, err = start("--stage", "test")
        assert (status, out) == (2, "")
        assert "the nearest is weight/2_16.pth, but its dataset is other, this run's synthetic" in err
        status, out, _ = start("--stage", "test", "--weight_path", "weight/2_16.pth")
        assert status == 0  # taken as asked, with the difference said
        assert "weight/2_16.pth: its dataset is other, this run's synthetic" in out
        assert "104 videos; 2_16.pth: pretrain on other, seed 3346" in out
        assert json_lines("log/3.jsonl")[-2]["origin"] == "pretrain on other, seed 3346"

    def test_other_features_under_the_same_name(self, start, dataset):
        start("--stage", "pretrain")
        write_features(dataset.folder / "train.h5", dataset.features["train"][:10])
        assert "it was trained on other features than" in start("--stage", "test")[2]

    def test_seeds_matter_to_training_alone(self, start):
        start("--stage", "pretrain", "--seed", 1)
        start("--stage", "pretrain", "--seed", 2)
        assert (
            "starts from weight/1_16.pth (pretrain on synthetic, seed 1)"
            in start("--stage", "train", "--seed", 1)[1]
        )
        status, _, err = start("--stage", "train", "--seed", 3)
        assert status == 2
        assert "the nearest is weight/2_16.pth, but its seed is 2, this run's 3; set weight_path" in err
        out = start("--stage", "train", "--seed", 3, "--weight_path", "weight/2_16.pth")[1]
        assert "weight/2_16.pth: its seed is 2, this run's 3" in out
        assert start("--stage", "test", "--seed", 9)[0] == 0

    def test_an_older_one_that_fits_is_better_than_a_newer_that_does_not(self, start):
        start("--stage", "pretrain")
        start("--stage", "pretrain", "--hidden_size", 128)
        assert "starts from weight/1_16.pth" in start("--stage", "train")[1]

    def test_another_systems_is_no_candidate(self, start):
        start("--stage", "bth.pretrain")
        assert "no finished checkpoint of train or pretrain that fits" in start("--stage", "test")[2]

    @pytest.mark.parametrize(
        ("stage", "of", "maker"),
        [
            ("train", "pretrain", "pretrain"),
            ("test", "train or pretrain", "pipeline"),
            ("bth.test", "bth.train or bth.pretrain", "bth.pipeline"),
            ("tools.encode", "train or pretrain or bth.train or bth.pretrain or conmh.train", "pipeline"),
            ("conmh.test", "conmh.train", "conmh.pipeline"),
        ],
    )
    def test_where_there_is_none_the_command_that_makes_one_is_told(self, start, stage, of, maker):
        none = f"error: weight: no finished checkpoint of {of} that fits; "
        make = f"python run.py --stage {maker}, with the same options, makes one; or set weight_path\n"
        assert start("--stage", stage)[::2] == (2, none + make)

    def test_a_folder_of_published_files(self, start, dataset, tmp_path):
        dataset.drop_blocks("run")
        for name in ("test", "query"):
            features = np.random.default_rng(0).standard_normal((len(dataset.features[name]), 10, 40))
            write_features(dataset.folder / f"{name}.h5", features.astype(np.float32))
        dataset.change(hidden_size=40, max_frames=10)
        folder = tmp_path / "released"
        folder.mkdir()
        shutil.copy(GOLDEN / "wsch_mini.pth", folder / "wsch_best.pth")
        shutil.copy(GOLDEN / "bth_tiny.pth", folder)
        status, out, _ = start("--stage", "test", "--weight_path", folder)
        assert status == 0
        assert "wsch_best.pth (published weights" in out
        shutil.copy(GOLDEN / "wsch_mini.pth", folder / "wsch_last.pth")
        err = start("--stage", "test", "--weight_path", folder)[2]
        assert "2 published checkpoints fit (wsch_best.pth, wsch_last.pth); name one" in err


class TestDamage:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        path = tmp_path / "x.pth"
        save_checkpoint(path, {"model": {"a": torch.arange(1000.0), "b": torch.ones(3)}})
        return path

    def test_a_flipped_bit_anywhere_is_found_or_harmless(self, checkpoint):
        whole, content = checkpoint.read_bytes(), read_checkpoint(checkpoint)
        rng = np.random.default_rng(0)
        found = 0
        for position in rng.choice(len(whole), 300, replace=False):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << int(rng.integers(8))
            checkpoint.write_bytes(damaged)
            try:
                read = read_checkpoint(checkpoint)
            except BadInput:
                found += 1
            else:
                assert all(torch.equal(value, read["model"][key]) for key, value in content["model"].items())
        assert found > 200

    def test_the_damaged_part_is_named(self, checkpoint):
        with zipfile.ZipFile(checkpoint) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data/0"))
            where = checkpoint.read_bytes().index(archive.read(name))
        content = bytearray(checkpoint.read_bytes())
        content[where + 7] ^= 64
        checkpoint.write_bytes(content)
        assert torch.load(checkpoint, weights_only=True)["model"]["a"][1] != 1  # which PyTorch does not see
        with pytest.raises(BadInput, match=r"x.pth: a damaged checkpoint: the checksum of .*data/0 is wrong"):
            read_checkpoint(checkpoint)

    def test_exchanged_weights_are_found(self, checkpoint):
        content = torch.load(checkpoint, weights_only=True)
        content["model"]["b"][0] = 2
        torch.save(content, checkpoint)
        with pytest.raises(BadInput, match="its weights are not those that were saved"):
            read_checkpoint(checkpoint)

    def test_a_digest_is_of_values(self):
        x = torch.randn(4, 6)
        assert digest(x) == digest(x.T.contiguous().T) != digest(x + 1)


class TestPublishedForms:
    @pytest.mark.parametrize("wrapper", ["own", "state_dict", "model_state_dict", None])
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
    @pytest.mark.parametrize(
        ("network", "name", "own"),
        [(model, "wsch_mini", "berthash"), (conmh.model, "conmh_tiny", "model_state_dict")],
        ids=["WSCH", "ConMH"],
    )
    def test_read_alike(self, network, name, own, wrapper, prefix, tmp_path):
        state = torch.load(GOLDEN / f"{name}.pth", weights_only=True)[own]
        content = {prefix + key: value for key, value in state.items()}
        wrapper = own if wrapper == "own" else wrapper
        torch.save({wrapper: content} if wrapper else content, tmp_path / "x.pth")
        found = network.load_published(tmp_path / "x.pth").state_dict()
        expected = network.load_published(GOLDEN / f"{name}.pth").state_dict()
        assert all(torch.equal(value, found[key]) for key, value in expected.items())

    def test_errors_name_five_weights_and_count_the_rest(self):
        with pytest.raises(BadInput) as error:
            model.load_published({f"layer{n}.weight": torch.zeros(1) for n in range(100)})
        assert str(error.value).count("is unknown") == 5
        assert " more" in str(error.value)


class TestNotFinite:
    """``sign(NaN)`` is 0 in PyTorch: overflow must not pass for a tie."""

    def test_huge_queries(self, start, dataset):
        start("--stage", "pretrain")
        features = dataset.features["query"].copy()
        features[2:4] *= 1e37
        write_features(dataset.folder / "query.h5", features)
        status, _, err = start("--stage", "test")
        assert status == 2
        assert "query.h5: video 2: not finite: codes" in err

    def test_codes_without_any_minus_one(self, start, dataset, monkeypatch):
        start("--stage", "pretrain")
        monkeypatch.setattr(model.WSCH, "hash", lambda net, frames: torch.ones(len(frames), 16).triu())
        status, _, err = start("--stage", "test")
        assert status == 2
        assert "1_16.pth: its codes hold no -1 at all, only 0 and +1: the network has collapsed" in err

    @pytest.mark.parametrize("stage", ["train", "bth.pretrain"])
    def test_huge_training_videos(self, start, dataset, stage):
        if stage == "train":
            start("--stage", "pretrain")
        what = "codes of both views" if stage == "train" else "latent features"
        features = dataset.features["train"].copy()
        features[7] = 3e38
        write_features(dataset.folder / "train.h5", features)
        options = ("--weight_path", "weight/1_16.pth") if stage == "train" else ("--max_iter", 0, 0)
        status, _, err = start("--stage", stage, *options)
        assert status == 2
        assert f"train.h5: video 7: not finite: {what}" in err
