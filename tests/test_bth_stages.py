"""BTH's stages from end to end: what they compute."""

import numpy as np
import pytest
import torch
from synthetic import (
    GOLDEN,
    N_FRAMES,
    N_TRAIN,
    PREPARED,
    WIDTH,
    contents,
    json_lines,
    killed,
    publish,
    run_pipeline,
    write_features,
)

from bth.model import BTH, drop
from bth.pairs import draw_disturbance, draw_pairs
from bth.settings import BTHSettings, Own, fresh_network, learning_rate
from bth.similarity import Similarity
from data import generator, open_store
from engine.systems import resolve
from formats.dataset import load_config


class TestPipeline:
    def test_runs_and_leaves_the_published_files(self, start, tmp_path):
        out = run_pipeline(start)
        weight = tmp_path / "work/weight"
        assert sorted(path.name for path in weight.iterdir()) == sorted(
            ["1_16.pth", "3_16.pth", *(f"{name}.h5" for name in PREPARED)]
        )
        files = {name: contents(weight / f"{name}.h5") for name in PREPARED}
        assert files["latent_feats"]["feats"].shape == (N_TRAIN, 16)
        assert files["latent_feats"]["feats"].dtype == np.float32
        n_anchors, width = files["anchors"]["feats"].shape
        assert 5 <= n_anchors <= 8
        assert width == 16
        assert files["train_assit"]["pos"].shape == (N_TRAIN, 3)
        assert files["train_assit"]["pos"].dtype == np.int64
        assert {key: value.dtype.name for key, value in files["sim_matrix"].items()} == {
            "indptr": "int64",
            "indices": "int32",
            "tag": "int8",
        }
        rows = [line.split("  ")[0] for line in out.splitlines()]
        assert [row for row in rows if row in ("trained", "mask only", "untrained", "chance")] == [
            "trained",
            "mask only",
            "untrained",
            "chance",
        ]
        result = json_lines(tmp_path / "work/log/4.jsonl")[-2]
        assert list(result["mAP"]) == ["5", "10", "20", "40", "60", "80", "100"]
        epoch = json_lines(tmp_path / "work/log/3.jsonl")[1]
        assert list(epoch["losses"]["pairs"]) == ["mask", "neighborhood", "cluster"]

    def test_each_stage_has_its_own_number_of_epochs(self, start, tmp_path):
        run_pipeline(start, "--max_iter", 1, 3)
        events = [[line["event"] for line in json_lines(tmp_path / f"work/log/{n}.jsonl")] for n in (1, 3)]
        assert [part.count("epoch") for part in events] == [1, 3]

    def test_bad_labels_show_before_training(self, start, dataset):
        (dataset.folder / "query.mat").write_bytes(b"")
        status, out, err = start("--stage", "bth.pipeline")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "query.mat: not a readable MAT file" in err

    def test_latents_are_those_of_clean_frames_without_dropout(self, start, dataset, tmp_path):
        run_pipeline(start)
        content = torch.load(tmp_path / "work/weight/1_16.pth", weights_only=True)
        net = BTH(24, 16, 16)
        net.load_state_dict(content["model"])
        expected = net.eval()(torch.from_numpy(dataset.features["train"])).hidden.mean(1)
        latents = contents(tmp_path / "work/weight/latent_feats.h5")["feats"]
        assert np.abs(latents - expected.detach().numpy()).max() < 1e-5

    def test_the_two_training_stages_start_from_different_weights(self, dataset):
        settings = resolve({"data_set_config": str(dataset.path), "stage": "bth.pipeline"}, {})
        first, second = (fresh_network(settings, 24, f"bth.{stage}") for stage in ("pretrain", "train"))
        assert not torch.equal(first.embed.weight, second.embed.weight)

    @pytest.mark.parametrize("change", [("--num_workers", 0), ("--num_workers", 2), ("--memory", "ram")])
    def test_memory_and_workers_change_no_bit(self, start, tmp_path, change):
        run_pipeline(start, "--memory", "disk")
        run_pipeline(start, "--memory", "disk", *change, "--result_weight_dir", "other")
        one = torch.load(tmp_path / "work/weight/3_16.pth", weights_only=True)["model"]
        other = torch.load(tmp_path / "work/other/7_16.pth", weights_only=True)["model"]
        assert all(torch.equal(value, other[key]) for key, value in one.items())

    def test_features_on_disk_are_never_written_to(self, start, dataset):
        before = (dataset.folder / "train.h5").read_bytes()
        run_pipeline(start, "--memory", "disk")
        assert (dataset.folder / "train.h5").read_bytes() == before
        config = load_config(dataset.path)
        store = open_store(config, config.train, "ram", "cpu")
        assert torch.equal(store.read(np.arange(N_TRAIN)), torch.from_numpy(dataset.features["train"]))

    def test_bit_for_bit_when_killed_at_every_step(self, start, tmp_path, monkeypatch):
        run_pipeline(start)
        for folder in ("log", "weight", "result"):
            (tmp_path / "work" / folder).rename(tmp_path / f"calm_{folder}")

        class Killed(BaseException):
            pass

        step, kills = torch.optim.Adam.step, 0
        while True:
            calls = []

            def dying(self, *args, calls=calls):
                if len(calls) == 2:
                    raise Killed
                calls.append(1)
                return step(self, *args)

            begun = list((tmp_path / "work").glob("log/*.jsonl"))
            with monkeypatch.context() as patch:
                patch.setattr(torch.optim.Adam, "step", dying)
                try:
                    start(
                        *(
                            ["--resume"]
                            if begun
                            else ["--stage", "bth.pipeline", "--checkpoint_minutes", 1e-9]
                        )
                    )
                except Killed:
                    kills += 1
                    continue
            break
        assert kills >= 4
        for n in (1, 3):
            one, other = (
                torch.load(tmp_path / folder / f"{n}_16.pth", weights_only=True)
                for folder in ("calm_weight", "work/weight")
            )
            assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())
            lines = [json_lines(tmp_path / folder / f"{n}.jsonl") for folder in ("calm_log", "work/log")]
            losses = [[line["losses"] for line in part if line["event"] == "epoch"] for part in lines]
            assert losses[0] == losses[1]
        for name in PREPARED:
            one, other = (
                contents(tmp_path / folder / f"{name}.h5") for folder in ("calm_weight", "work/weight")
            )
            assert all(np.array_equal(one[key], other[key]) for key in one)


class TestTraining:
    def test_is_adam_on_the_three_losses_of_disturbed_pairs(self, start, dataset, tmp_path, monkeypatch):
        monkeypatch.setattr("bth.model.DROPOUT", 0.0)
        prepared, options = publish(tmp_path / "published")
        options += ["--lr", 1e-3, "--bth.lr_decay", 0.5, "--bth.lr_decay_epochs", 1]
        assert start("--stage", "bth.train", *options)[0] == 0
        settings = resolve({"data_set_config": str(dataset.path), "stage": "bth.train"}, {})
        net = fresh_network(settings, WIDTH, "bth.train")
        similarity = Similarity(tmp_path / "published/sim_matrix.h5", N_TRAIN)
        anchors, nearest = torch.from_numpy(prepared["feats"]), prepared["pos"][:, 0]
        stored = torch.from_numpy(dataset.features["train"])
        adam = torch.optim.Adam(net.parameters())
        losses = []
        for epoch in range(2):
            adam.param_groups[0]["lr"] = 1e-3 * 0.5**epoch
            rng = generator(3346, "bth.train", epoch, 0)
            order = rng.permutation(N_TRAIN)
            partner, target = draw_pairs(similarity, order, rng)
            plan = draw_disturbance((2, N_TRAIN, N_FRAMES), N_TRAIN, rng)
            total = {"mask": 0.0, "neighborhood": 0.0, "cluster": 0.0}
            for batch in np.array_split(np.arange(N_TRAIN), [8, 16]):  # places in the order
                mask, cluster, hbar = 0.0, 0.0, []
                for side, videos in enumerate((order[batch], partner[batch])):
                    clean = stored[videos]
                    frames = clean.clone()
                    for row, place in enumerate(batch):
                        for frame in range(N_FRAMES):
                            at = side, place, frame
                            if plan.zero[at]:
                                frames[row, frame] = 0
                            elif plan.replace[at]:
                                frames[row, frame] = stored[plan.video[at], plan.frame[at]]
                    out = net(frames)
                    hbar.append(out.codes.mean(1))
                    away = out.hidden.mean(1) - anchors[nearest[videos]]
                    cluster += away.square().sum() / (16 * len(batch))
                    mask += (out.reconstruction - clean).square().sum() / (2 * N_FRAMES * WIDTH * len(batch))
                similar = (hbar[0] * hbar[1]).sum(1) / 16
                neighborhood = (torch.from_numpy(target[batch]) - similar).square().mean()
                terms = {"mask": 0.92 * mask, "neighborhood": 0.08 * neighborhood, "cluster": 0.8 * cluster}
                adam.zero_grad()
                sum(terms.values()).backward()
                adam.step()
                for term, value in terms.items():
                    total[term] += value.item() * len(batch) / N_TRAIN
            losses.append(total)
        lines = json_lines(tmp_path / "work/log/1.jsonl")
        logged = [line["losses"]["pairs"] for line in lines if line["event"] == "epoch"]
        for found, expected in zip(logged, losses, strict=True):
            assert found == pytest.approx(expected, rel=1e-4)

    def test_frames_are_clean_and_disturbed_at_their_places(self, start, dataset, monkeypatch):
        seen = []
        masked = BTH.masked

        def spy(net, *batch):
            seen.append(batch[:3])
            return masked(net, *batch)

        monkeypatch.setattr(BTH, "masked", spy)
        assert start("--stage", "bth.pretrain", "--max_iter", 20, 0)[0] == 0
        stored = torch.from_numpy(dataset.features["train"])
        frames, places, replacement = zip(*seen, strict=True)
        assert all((stored == video).all((1, 2)).any() for video in torch.cat(frames))
        assert all((stored == frame).all(2).any() for frame in torch.cat(replacement))
        changed = sum(map(len, places))  # 15% disturbed, of which 10% stay
        expected, n = 0.15 * 0.9, 20 * N_TRAIN * N_FRAMES
        assert abs(changed / n - expected) < 4 * (expected * (1 - expected) / n) ** 0.5

    def test_dropout_is_on_in_training_and_a_function_of_the_place(self, start, tmp_path, monkeypatch):
        rates = []

        def spy(x, dropout):
            rates.append(dropout.probability)
            return drop(x, dropout)

        monkeypatch.setattr("bth.model.drop", spy)
        start("--stage", "bth.pretrain", "--max_iter", 2, 0)
        assert rates[-5:] == [0] * 5  # the latents
        assert set(rates) == {0, 0.1}
        torch.manual_seed(99)
        start("--stage", "bth.pretrain")
        one, other = (
            torch.load(tmp_path / f"work/weight/{n}_16.pth", weights_only=True)["model"] for n in (1, 2)
        )
        assert all(torch.equal(value, other[key]) for key, value in one.items())

    def test_learning_rate_steps(self):
        rate = learning_rate(BTHSettings(lr=3e-4))
        assert [rate(epoch) for epoch in (0, 19, 20, 40)] == pytest.approx([3e-4, 3e-4, 2.7e-4, 2.43e-4])
        assert rate(10**6) == 1e-4
        assert learning_rate(BTHSettings(lr=1e-5))(100) == 1e-5
        assert learning_rate(BTHSettings(lr=1e-3, bth=Own(lr_decay=0.5, lr_decay_epochs=1)))(2) == 2.5e-4

    def test_continues_from_weights_the_user_names(self, start, tmp_path):
        run_pipeline(start)
        start("--stage", "bth.train", "--weight_path", tmp_path / "work/weight/3_16.pth", "--max_iter", 0, 0)
        one, other = (
            torch.load(tmp_path / f"work/weight/{n}_16.pth", weights_only=True)["model"] for n in (3, 5)
        )
        assert all(torch.equal(value, other[key]) for key, value in one.items())

    def test_resumes_from_the_weights_it_started_with(self, start, tmp_path, monkeypatch):
        """Killed before its first checkpoint, with a newer network in the folder since."""
        run_pipeline(start)
        weight = tmp_path / "work/weight"
        options = ("--stage", "bth.train", "--weight_path", weight, "--max_iter", 0, 0)
        with monkeypatch.context() as patch:
            patch.setattr("bth.train.run_stage", killed)
            assert start(*options)[0] == 130
        assert start("--stage", "bth.train", "--seed", 1)[0] == 0
        assert start("--resume", 5)[0] == 0
        one, other = (torch.load(weight / f"{n}_16.pth", weights_only=True)["model"] for n in (3, 5))
        assert all(torch.equal(value, other[key]) for key, value in one.items())

    @pytest.mark.parametrize("stage", ["pretrain", "train", "train from weights", "test"])
    def test_precision_reaches_the_network(self, start, tmp_path, monkeypatch, stage):
        monkeypatch.setattr("engine.device.has_bfloat16", lambda: True)
        run_pipeline(start)
        seen = set()
        transform = BTH._transform
        monkeypatch.setattr(
            BTH, "_transform", lambda net, *rest: seen.add(net.bfloat16) or transform(net, *rest)
        )
        options = ("--weight_path", tmp_path / "work/weight/3_16.pth") if " " in stage else ()
        assert start("--stage", f"bth.{stage.split()[0]}", "--precision", "bfloat16", *options)[0] == 0
        assert seen == ({True, False} if stage == "pretrain" else {True})  # latents are float32 in any case

    def test_a_published_checkpoint_is_tested_as_it_is(self, start, dataset, tmp_path):
        dataset.drop_blocks()
        for name in ("test", "query"):
            frames = np.random.default_rng(0).standard_normal((len(dataset.features[name]), 6, 40))
            write_features(dataset.folder / f"{name}.h5", frames.astype(np.float32))
        dataset.change(hidden_size=40)
        status, out, err = start("--stage", "bth.test", "--weight_path", GOLDEN / "bth_tiny.pth")
        assert (status, err) == (0, "")
        assert "16 bits" in out

    def test_a_nonfinite_weight_is_never_saved(self, start, tmp_path, monkeypatch):
        step = torch.optim.Adam.step

        def spoil(self, *args):
            result = step(self, *args)
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(torch.inf)
            return result

        monkeypatch.setattr(torch.optim.Adam, "step", spoil)
        status, _, err = start("--stage", "bth.pretrain", "--batch_size", N_TRAIN)
        assert status == 2
        assert "a weight is not finite in epoch" in err
        part = torch.load(tmp_path / "work/weight/1_16.part.pth", weights_only=True)
        assert part["position"] == (0, 0, 0)
