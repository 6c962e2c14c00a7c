"""BTH's prepared files: when they are kept, made anew, taken as they are, refused."""

import os
import re
import signal

import h5py
import numpy as np
import pytest
from conftest import N_TRAIN, PREPARED, contents, publish, run_pipeline

from bth import prepare


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
            ("anchors", None, "anchors.h5: no such file; the stages bth.pretrain and bth.prepare make it"),
        ],
    )  # fmt: skip
    def test_wrong_files_are_named(self, start, tmp_path, name, content, message):
        run_pipeline(start)
        path = tmp_path / f"work/weight/{name}.h5"
        path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content:
            with h5py.File(path, "w") as file:
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
        expected = {"1_16.pth", *(f"{name}.h5" for name in PREPARED[:3])}
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
        assert "latent_feats.h5: no such file; the stages bth.pretrain and bth.prepare make it" in err
