"""BTH's prepared files: when they are kept, made anew, taken as they are, refused."""

import os
import re
import signal

import h5py
import numpy as np
import pytest
import torch
from synthetic import N_TRAIN, PREPARED, contents, killed, publish, run_pipeline, write_features

from bth import prepare, pretrain, train
from bth.prepared import made_from


class TestPreparation:
    def test_what_matches_is_kept_and_what_does_not_is_made_anew(self, start, tmp_path):
        run_pipeline(start)
        weight = tmp_path / "work/weight"
        times = {name: (weight / f"{name}.h5").stat().st_mtime_ns for name in PREPARED}
        out = start("--stage", "bth.prepare")[1]
        assert out.count("up to date, kept") == 3
        assert times == {name: (weight / f"{name}.h5").stat().st_mtime_ns for name in PREPARED}
        out = start("--stage", "bth.prepare", "--bth.n_anchors", 6)[1]
        assert out.count("written") == 3
        assert len(contents(weight / "anchors.h5")["feats"]) <= 6
        out = start("--stage", "bth.pretrain", "--seed", 1)[1]
        assert "latent_feats.h5: written" in out

    def test_published_files_are_taken_as_they_are(self, start, tmp_path):
        folder = tmp_path / "published"
        _, options = publish(folder)
        before = {path: path.read_bytes() for path in folder.iterdir()}
        status, out, _ = start("--stage", "bth.prepare", *options)
        assert status == 0
        assert out.count("there already, taken as it is") == 3
        assert start("--stage", "bth.train", *options)[0] == 0
        (tmp_path / "work/weight/latent_feats.h5").write_bytes(b"of no interest to it")
        assert start("--stage", "bth.train", *options)[0] == 0
        assert before == {path: path.read_bytes() for path in folder.iterdir()}

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("anchors", {"x": np.zeros(3)}, r"anchors.h5: no dataset 'feats', found \['x'\]"),
            ("anchors", {"feats": np.zeros((7, 15), np.float32)}, r"\(m, 16\), found float32 \(7, 15\)"),
            ("anchors", {"feats": np.full((7, 16), np.nan, np.float32)}, "expected finite float32 values"),
            ("train_assit", {"pos": np.full((N_TRAIN, 3), 99)}, "expected anchors 0 to .*, found 99 to 99"),
            ("train_assit", {"pos": np.zeros((19, 3), int)}, r"integers \(20, 3\), found int64 \(19, 3\)"),
            ("sim_matrix", {"adj": np.ones((5, 5), np.float32)}, "the tags of 20 training videos, found 5"),
            ("sim_matrix", b"no HDF5 file", "sim_matrix.h5: not a readable HDF5 file"),
            ("anchors", None, "anchors.h5: no such file; python run.py --stage bth.pretrain makes"),
        ],
    )  # fmt: skip
    def test_wrong_files_are_named(self, start, tmp_path, name, content, message):
        run_pipeline(start)
        path = tmp_path / f"work/weight/{name}.h5"
        stamp = made_from(path)
        path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content:
            with h5py.File(path, "w") as file:
                file.attrs["made_from"] = stamp
                for key, array in content.items():
                    file[key] = array
        status, _, err = start("--stage", "bth.train")
        assert status == 2
        assert err.count("\n") == 1
        assert re.search(message, err)

    def test_a_signal_keeps_what_is_finished(self, start, tmp_path, monkeypatch):
        assert start("--stage", "bth.pretrain")[0] == 0
        blocks = prepare.similarity_blocks

        def signalled(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            yield from blocks(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(prepare, "similarity_blocks", signalled)
            status, _, err = start("--stage", "bth.prepare")
        assert (status, err) == (143, "stopped; to go on with it: python run.py --resume 2\n")
        weight = tmp_path / "work/weight"
        expected = {"1_16.pth", "2.reserved", *(f"{name}.h5" for name in PREPARED[:3])}
        assert {path.name for path in weight.iterdir()} == expected
        status, out, _ = start("--resume")
        assert status == 0
        assert out.count("up to date, kept") == 2
        assert "sim_matrix.h5: written" in out

    def test_more_anchors_than_videos(self, start):
        for stage in ("bth.pipeline", "bth.prepare"):
            status, _, err = start("--stage", stage, "--bth.n_anchors", N_TRAIN + 1)
            assert status == 2
            assert "'bth.n_anchors' is 21, more than the 20 training videos" in err

    def test_latents_must_be_there(self, start):
        status, _, err = start("--stage", "bth.prepare")
        assert status == 2
        assert "latent_feats.h5: no such file; python run.py --stage bth.pretrain makes the latents" in err

    @pytest.mark.parametrize("name", ["anchors", "train_assit", "sim_matrix"])
    def test_training_names_what_is_not_there(self, start, tmp_path, name):
        run_pipeline(start)
        (tmp_path / f"work/weight/{name}.h5").unlink()
        status, _, err = start("--stage", "bth.train")
        assert (status, err.count("\n")) == (2, 1)
        how = "python run.py --stage bth.pretrain makes the latents, --stage bth.prepare the other files"
        assert f"weight/{name}.h5: no such file; {how}" in err

    @pytest.mark.parametrize("published", [(), ("anchors",)])
    def test_training_refuses_what_was_made_from_other_latents(self, start, tmp_path, published):
        run_pipeline(start)
        options = []
        for name in published:
            with h5py.File(tmp_path / f"{name}.h5", "w") as file:
                file["feats"] = contents(tmp_path / f"work/weight/{name}.h5")["feats"]
            options += [f"--bth.{name}", tmp_path / f"{name}.h5"]
        assert start("--stage", "bth.train", *options)[0] == 0
        assert start("--stage", "bth.pretrain", "--seed", 1)[0] == 0
        status, _, err = start("--stage", "bth.train", *options)
        assert status == 2
        assert err.count("\n") == 1
        assert re.search("made from other latents than .*latent_feats.h5.*; run stage bth.prepare", err)

    def test_training_refuses_tags_of_other_anchors(self, start, tmp_path):
        run_pipeline(start)
        weight = tmp_path / "work/weight"
        old = (weight / "sim_matrix.h5").read_bytes()
        assert start("--stage", "bth.prepare", "--bth.n_anchors", 6)[0] == 0
        (weight / "sim_matrix.h5").write_bytes(old)
        status, _, err = start("--stage", "bth.train")
        assert status == 2
        assert "weight/sim_matrix.h5: made from other latents than weight/latent_feats.h5 or anchors" in err

    @pytest.mark.parametrize("stage", ["prepare", "train"])
    def test_a_pipeline_uses_the_latents_of_its_own_network(self, start, tmp_path, monkeypatch, stage):
        """Another run in the same folder has gone through its preparation when this one comes to a stage."""
        run_pipeline(start, "--seed", 1)
        theirs = {path: path.read_bytes() for path in (tmp_path / "work/weight").glob("*.h5")}
        module = {"prepare": prepare, "train": train}[stage]
        train_model = module.train_model

        def late(*arguments):
            for path, content in theirs.items():
                path.write_bytes(content)
            return train_model(*arguments)

        monkeypatch.setattr(module, "train_model", late)
        status, _, err = start("--stage", "bth.pipeline")
        assert status == 2
        assert "latent_feats.h5: not the latents of weight/5_16.pth: another run has written its own" in err

    def test_latents_of_a_finished_stage_are_made_when_they_are_missing(self, start, tmp_path, monkeypatch):
        """A kill between the checkpoint and the latents."""
        run_pipeline(start)
        expected = contents(tmp_path / "work/weight/latent_feats.h5")["feats"]
        for folder in ("log", "weight"):
            (tmp_path / "work" / folder).rename(tmp_path / folder)
        with monkeypatch.context() as patch:
            patch.setattr(pretrain, "write_latents", killed)
            assert start("--stage", "bth.pipeline")[0] == 130
        assert not (tmp_path / "work/weight/latent_feats.h5").exists()
        status, out, _ = start("--resume")
        assert status == 0
        assert "latent_feats.h5: written\n" in out
        assert np.array_equal(contents(tmp_path / "work/weight/latent_feats.h5")["feats"], expected)

    def test_seed_and_features_count_among_what_a_file_was_made_from(self, start, dataset, tmp_path):
        run_pipeline(start)
        before = contents(tmp_path / "work/weight/anchors.h5")["feats"]
        assert "anchors.h5: written anew" in start("--stage", "bth.prepare", "--seed", 1)[1]
        assert not np.array_equal(contents(tmp_path / "work/weight/anchors.h5")["feats"], before)
        assert "latent_feats.h5: up to date, kept" in start("--stage", "bth.pretrain")[1]
        write_features(dataset.folder / "train.h5", dataset.features["train"][::-1])  # names and sizes stay
        assert "latent_feats.h5: written anew" in start("--stage", "bth.pretrain")[1]

    @pytest.mark.parametrize(
        ("name", "key", "content", "message"),
        [
            ("latent_feats", "feats", np.zeros((N_TRAIN, 32), np.float32), r"\(20, 16\), found .*\(20, 32\)"),
            ("latent_feats", "feats", np.full((N_TRAIN, 16), 1e300), "expected finite float32 values"),
            ("anchors", "feats", np.zeros((4, 16), np.float32), "expected at least 5 anchors, found 4"),
            ("anchors", "feats", np.full((7, 16), 1e300), "expected finite float32 values"),
            ("sim_matrix", "adj", np.ones((5, 5), np.float32), "the tags of 20 training videos, found 5"),
        ],
    )
    def test_published_files_are_checked_before_training(self, start, tmp_path, name, key, content, message):
        with h5py.File(tmp_path / "published.h5", "w") as file:
            file[key] = content
        for stage in ("bth.pipeline", "bth.prepare"):
            status, out, err = start("--stage", stage, f"--bth.{name}", tmp_path / "published.h5")
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert re.search(f"published.h5: .*{message}", err)

    def test_published_tags_are_read_to_the_end_before_training(self, start, tmp_path):
        _, options = publish(tmp_path / "published")
        with h5py.File(tmp_path / "published/sim_matrix.h5", "a") as file:
            file["adj"][N_TRAIN - 1, 3] = np.nan
        status, out, err = start("--stage", "bth.pipeline", *options)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "'adj': expected tags of 0 and (-2, -1, 1, 2, 3)" in err

    def test_published_pseudo_labels_need_their_anchors(self, start, tmp_path):
        publish(tmp_path / "published")
        named = ("--bth.train_assit", tmp_path / "published/train_assit.h5")
        status, out, err = start("--stage", "bth.pipeline", *named)
        assert (status, out) == (2, "")
        assert "train_assit.h5: a published file, whose anchors are not those made here" in err

    @pytest.mark.parametrize("stage", ["prepare", "train"])
    def test_latents_of_other_features_are_refused(self, start, dataset, stage):
        run_pipeline(start)
        write_features(dataset.folder / "train.h5", dataset.features["train"][::-1])
        status, out, err = start("--stage", f"bth.{stage}")
        assert (status, out) == (2, "")
        assert re.search("latent_feats.h5: made from other features than .*train.h5; run stage", err)

    def test_moved_features_are_the_same(self, start, dataset):
        run_pipeline(start)
        (dataset.folder / "train.h5").rename(dataset.folder / "moved.h5")
        dataset.change(train="moved.h5")
        assert start("--stage", "bth.train")[0] == 0

    def test_older_stamps_of_names_and_sizes_hold(self, start, dataset, tmp_path):
        run_pipeline(start)
        path, train = tmp_path / "work/weight/latent_feats.h5", dataset.folder / "train.h5"
        network = made_from(path).split(", features ")[0]
        with h5py.File(path, "a") as file:
            file.attrs["made_from"] = f"{network}, features {[('train.h5', train.stat().st_size)]}"
        assert start("--stage", "bth.train")[0] == 0
        with open(train, "ab") as file:
            file.write(b"one byte longer")
        assert "made from other features" in start("--stage", "bth.train")[2]

    @pytest.mark.parametrize("error", [MemoryError(), KeyError("a"), TypeError("b"), ValueError("c")])
    def test_whatever_a_damaged_file_causes_is_one_line(self, start, monkeypatch, error):
        run_pipeline(start)
        monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *_: (_ for _ in ()).throw(error))
        status, _, err = start("--stage", "bth.train")
        assert (status, err.count("\n")) == (2, 1)

    def test_bad_latents_begin_no_run(self, start, tmp_path):
        assert start("--stage", "bth.pretrain")[0] == 0
        assert start("--stage", "bth.prepare", "--hidden_size", 32)[0] == 2
        assert not (tmp_path / "work/log/2.jsonl").exists()

    def test_a_file_of_another_maker_is_a_published_one(self, start, tmp_path):
        _, options = publish(tmp_path / "published")
        odd_values = (np.arange(3), np.bytes_(b"x"), 1.5)
        for path, odd in zip((tmp_path / "published").iterdir(), odd_values, strict=True):
            with h5py.File(path, "a") as file:
                file.attrs["made_from"] = odd
        status, out, err = start("--stage", "bth.prepare", *options)
        assert (status, err) == (0, "")
        assert out.count("taken as it is") == 3

    def test_four_files_are_four(self, start, tmp_path):
        for options in (
            ("--bth.anchors", "a.h5", "--bth.sim_matrix", "./a.h5"),
            ("--bth.anchors", "weight/latent_feats.h5"),
        ):
            status, _, err = start("--stage", "bth.pipeline", *options)
            assert status == 2
            assert re.search("'bth.[a-z_]*' and 'bth.[a-z_]*': expected two files, found .* twice", err)

    def test_a_file_that_cannot_be_written_shows_before_training(self, start, tmp_path):
        (tmp_path / "file").touch()
        status, out, err = start("--stage", "bth.pipeline", "--bth.anchors", tmp_path / "file/anchors.h5")
        assert (status, out) == (2, "")
        assert "cannot be written to: a file is in the way" in err

    def test_more_anchors_than_videos_do_not_matter_when_they_are_published(self, start, tmp_path):
        _, options = publish(tmp_path / "published")
        assert start("--stage", "bth.prepare", *options, "--bth.n_anchors", N_TRAIN + 1)[0] == 0

    @pytest.mark.parametrize("name", ["train_assit", "sim_matrix"])
    def test_resumed_training_reads_what_it_began_with(self, start, tmp_path, monkeypatch, name):
        _, options = publish(tmp_path / "published")

        def stop(self, *_):
            os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.Adam, "step", stop)
            assert start("--stage", "bth.train", *options)[0] == 143
        with h5py.File(tmp_path / f"published/{name}.h5", "a") as file:
            key = {"train_assit": "pos", "sim_matrix": "adj"}[name]
            file[key][0] = np.roll(file[key][0], 1)
        os.utime(tmp_path / f"published/{name}.h5")
        status, _, err = start("--resume")
        assert status == 2
        assert "a checkpoint of another run: " + {"train_assit": "pos", "sim_matrix": "tags"}[name] in err
