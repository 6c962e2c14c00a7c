"""The stages from end to end on a small synthetic dataset: what they compute, log and leave on disk."""

import json
import math
import re

import numpy as np
import pytest
import torch
from synthetic import GOLDEN, N_DATABASE, N_FRAMES, N_TRAIN, WIDTH, json_lines, write_features

import model
from cluster import kmeans
from data import draw_views, generator, open_store
from engine import published
from engine.checkpoint import load_weights
from engine.systems import resolve
from formats.dataset import load_config
from model import WSCH, cluster_loss, contrastive_loss, reconstruction_loss
from pretrain import fresh_network


class TestPipeline:
    def test_runs_logs_and_prints_the_table(self, start, tmp_path):
        status, out, err = start()
        assert (status, err) == (0, "")
        work = tmp_path / "work"
        assert sorted(path.name for path in (work / "weight").iterdir()) == ["1_16.pth", "2_16.pth"]
        assert sorted(path.name for path in (work / "log").glob("[0-9]*")) == [
            f"{n}.{kind}" for n in (1, 2, 3) for kind in ("jsonl", "txt")
        ]
        lines = out.splitlines()
        rows = [
            line.split()[0] for line in lines[lines.index(next(x for x in lines if x.startswith("mAP@K"))) :]
        ]
        assert rows[:2] == ["mAP@K", "trained"]
        assert rows[5:8] == ["pre-trained", "untrained", "chance"]
        events = {n: json_lines(work / "log" / f"{n}.jsonl") for n in (1, 2, 3)}
        assert [event["event"] for event in events[1]] == ["reserved", "start", "epoch", "epoch", "end"]
        assert [event["event"] for event in events[2]] == ["start", "epoch", "epoch", "end"]
        assert [event["event"] for event in events[3]] == ["start", "result", "end"]
        assert events[2][0]["settings"]["cfg"]["n_clusters"] == 5
        epoch = events[2][2]
        assert epoch["epoch"] == 2
        assert list(epoch["losses"]) == ["clustering", "cluster-guided", "contrastive"]
        assert all(math.isfinite(term) for terms in epoch["losses"].values() for term in terms.values())
        result = events[3][1]
        assert set(result["mAP"]) == {"5", "20", "40", "60", "80", "100"}
        assert {"mAP_tie_expected", "precision", "recall", "zero_code_entries", "published"} <= set(result)
        assert (work / "log" / "1.txt").read_text() in out

    def test_equals_its_stages_one_by_one(self, start, tmp_path):
        start()
        for stage in ("pretrain", "train", "test"):
            assert start("--stage", stage)[0] == 0
        one, other = (torch.load(tmp_path / f"work/weight/{n}_16.pth", weights_only=True) for n in (2, 5))
        assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())
        results = [json_lines(tmp_path / f"work/log/{n}.jsonl")[-2] for n in (3, 6)]
        assert results[0]["mAP"] == results[1]["mAP"]

    @pytest.mark.parametrize("stage", ["pretrain", "conmh.train"])
    @pytest.mark.parametrize("change", [("--memory", "ram"), ("--num_workers", 0), ("--num_workers", 2)])
    def test_memory_and_workers_change_no_bit(self, start, tmp_path, stage, change):
        start("--memory", "disk", "--stage", stage)
        start("--memory", "disk", *change, "--stage", stage)
        one, other = (torch.load(tmp_path / f"work/weight/{n}_16.pth", weights_only=True) for n in (1, 2))
        assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())

    @pytest.mark.parametrize(("stage", "name"), [("pretrain", "reconstruction"), ("conmh.train", "views")])
    def test_bfloat16_learns_as_well(self, start, tmp_path, monkeypatch, stage, name):
        monkeypatch.setattr("engine.device.has_bfloat16", lambda: True)
        start("--stage", stage)
        start("--stage", stage, "--precision", "bfloat16")
        one, other = (json_lines(tmp_path / f"work/log/{n}.jsonl")[-2]["losses"][name] for n in (1, 2))
        assert other["reconstruction"] != one["reconstruction"]
        assert other["reconstruction"] == pytest.approx(one["reconstruction"], rel=0.02)


@pytest.mark.parametrize("stage", ["pretrain", "bth.pretrain", "conmh.train"])
def test_bfloat16_without_instructions_for_it_is_refused(start, tmp_path, monkeypatch, stage):
    monkeypatch.setattr("engine.device.has_bfloat16", lambda: False)
    status, out, err = start("--stage", stage, "--precision", "bfloat16")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "'precision' is bfloat16, but this processor has no instructions for it; set float32" in err
    assert start("--stage", stage)[0] == 0


class TestPretrain:
    def test_is_adam_on_the_reconstruction_of_both_views(self, start, dataset, tmp_path):
        start("--stage", "pretrain")
        settings = resolve({"data_set_config": str(dataset.path)}, {})
        net = fresh_network(settings, 24)
        adam = torch.optim.Adam(net.parameters(), lr=1e-3)
        losses = []
        for epoch in range(2):
            order, masks = draw_views(generator(3346, "pretrain", epoch, 0), N_TRAIN, 6, 0.7)
            total = 0.0
            for batch in np.array_split(order, [8, 16]):  # 8, 8 and the last 4
                frames = torch.from_numpy(dataset.features["train"][batch])
                loss = sum(
                    reconstruction_loss(net(frames, mask[batch]).reconstruction, frames, mask[batch])
                    for mask in masks
                )
                adam.zero_grad()
                loss.backward()
                adam.step()
                total += loss.item() * len(batch)
            losses.append(total / N_TRAIN)
        logged = [
            line["losses"]["reconstruction"]["reconstruction"]
            for line in json_lines(tmp_path / "work/log/1.jsonl")[2:4]
        ]
        assert logged == pytest.approx(losses, rel=1e-5)


class TestTrain:
    def test_is_the_cycle_of_clustering_and_two_passes(self, start, dataset, tmp_path):
        start("--stage", "pretrain")
        start("--stage", "train", "--cfg.a", 0.5, "--cfg.b", 0.25)
        before, after = (torch.load(tmp_path / f"work/weight/{n}_16.pth", weights_only=True) for n in (1, 2))
        net = WSCH(WIDTH, hidden_size=64, decoder_size=32, hashcode_size=16, n_clusters=5)
        net.load_state_dict(before["model"])
        adam = torch.optim.Adam(net.parameters(), lr=1e-3)
        moments = before["optimizer"]["state"]
        adam.load_state_dict({"state": moments, "param_groups": adam.state_dict()["param_groups"]})
        stored = torch.from_numpy(dataset.features["train"])
        centers, losses = None, []
        for epoch in range(2):
            rng = generator(3346, "train", epoch, 0)
            _, masks = draw_views(rng, N_TRAIN, N_FRAMES, 0.7)  # p1
            codes = torch.cat([net.embed(stored, mask).detach().sign() for mask in masks])
            seed = torch.Generator().manual_seed(int(rng.integers(2**62)))
            found = kmeans(codes, 5, init=centers, generator=seed)
            centers = found.centers.sign()
            losses.append({"clustering": {"inertia": found.inertia, "rounds": found.n_iter}})
            for number, name in ((1, "cluster-guided"), (2, "contrastive")):
                rng = generator(3346, "train", epoch, number)
                order, masks = draw_views(rng, N_TRAIN, N_FRAMES, 0.5)  # p2
                total = losses[epoch][name] = {}
                for batch in np.array_split(order, [8, 16]):
                    frames, (mask1, mask2) = stored[batch], masks[:, batch]
                    (r1, h1), (r2, h2) = net(frames, mask1), net(frames, mask2)
                    terms = {
                        "reconstruction": reconstruction_loss(r1, frames, mask1)
                        + reconstruction_loss(r2, frames, mask2)
                    }
                    if name == "cluster-guided":
                        pull = cluster_loss(h1, centers, 0.2) + cluster_loss(h2, centers, 0.2)
                        terms["cluster"] = 0.5 * pull
                    else:
                        terms["contrastive"] = 0.25 * contrastive_loss(h1, h2, 0.5, 0.1)
                    adam.zero_grad()
                    sum(terms.values()).backward()
                    adam.step()
                    for term, value in terms.items():
                        total[term] = total.get(term, 0.0) + value.item() * len(batch) / N_TRAIN
        lines = json_lines(tmp_path / "work/log/2.jsonl")
        logged = [line["losses"] for line in lines if line["event"] == "epoch"]
        for found, expected in zip(logged, losses, strict=True):
            assert list(found) == list(expected)
            for name, terms in expected.items():
                assert found[name] == pytest.approx(terms, rel=1e-4)
        assert torch.equal(after["model"]["centers"], centers)

    def test_carries_adam_on_and_takes_its_own_lr(self, start, tmp_path):
        start("--stage", "pretrain")
        start("--stage", "train", "--max_iter", 0, 1, "--lr", 1e-5)
        before, after = (torch.load(tmp_path / f"work/weight/{n}_16.pth", weights_only=True) for n in (1, 2))
        steps = [content["optimizer"]["state"][0]["step"].item() for content in (before, after)]
        assert steps == [2 * 3, 2 * 3 + 2 * 3]
        assert after["optimizer"]["param_groups"][0]["lr"] == 1e-5

    def test_centers_are_signs_of_the_codes_of_both_views(self, start, dataset, tmp_path):
        start("--stage", "pretrain")
        start("--stage", "train", "--max_iter", 0, 1, "--cfg.n_clusters", 2 * N_TRAIN)
        content = torch.load(tmp_path / "work/weight/2_16.pth", weights_only=True)
        # As many centers as codes: every distinct code is a center, and the sign of itself.
        settings = resolve({"data_set_config": str(dataset.path)}, {})
        weights = load_weights(tmp_path / "work/weight/1_16.pth", settings, ("pretrain",), model)
        _, masks = draw_views(generator(3346, "train", 0, 0), N_TRAIN, 6, 0.7)
        frames = torch.from_numpy(dataset.features["train"])
        codes = torch.cat([weights.net.embed(frames, mask).sign() for mask in masks])
        distinct = {tuple(code) for code in codes.tolist()}
        assert distinct == {tuple(center) for center in content["model"]["centers"].tolist()}

    def test_weights_of_the_two_losses(self, start, tmp_path):
        start("--stage", "pretrain")
        for a, b in ((1.0, 1.0), (2.0, 3.0)):
            start("--stage", "train", "--max_iter", 0, 1, "--cfg.a", a, "--cfg.b", b, "--lr", 1e-12)
        one, other = (json_lines(tmp_path / f"work/log/{n}.jsonl")[2]["losses"] for n in (2, 3))
        assert other["cluster-guided"]["cluster"] == pytest.approx(
            2 * one["cluster-guided"]["cluster"], rel=1e-4
        )
        assert other["contrastive"]["contrastive"] == pytest.approx(
            3 * one["contrastive"]["contrastive"], rel=1e-4
        )


class TestWithoutLabels:
    @pytest.fixture(autouse=True)
    def unlabelled(self, dataset):
        dataset.change(num_class=0, train_label="", test_label="", query_label="")

    @pytest.mark.parametrize("system", ["", "bth."])
    def test_the_refused_test_names_stages_that_run(self, start, dataset, tmp_path, system):
        reason = f"error: {dataset.path}: 'test_label' is empty: a test needs labels; without labels, train"
        for stage in ("pipeline", "test"):
            status, out, err = start("--stage", f"{system}{stage}")
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert err.startswith(reason)
        stages = re.findall(r"--stage ([\w.]+)", err)
        for stage in stages:
            assert start("--stage", stage, *(() if "encode" in stage else ("--max_iter", 1, 1)))[0] == 0
        assert (tmp_path / f"work/code/{len(stages)}_16_test.h5").exists()

    def test_looks_while_training_are_tests_too(self, start):
        status, _, err = start("--stage", "pretrain", "--eval_every", 1)
        assert (status, err.count("\n")) == (2, 1)
        assert err.endswith("a test needs labels; without labels, set 'eval_every' to 0\n")

    def test_a_baseline_has_no_other_way(self, start, dataset):
        status, _, err = start("--stage", "tools.baseline")
        assert (status, err) == (2, f"error: {dataset.path}: 'test_label' is empty: a test needs labels\n")


class TestTest:
    def test_database_videos_retrieve_themselves(self, start, dataset, tmp_path):
        dataset.change(query="test.h5", query_label="test.mat")
        start("--stage", "pretrain", "--max_iter", 0, 0)
        status, out, _ = start("--stage", "test")
        assert status == 0
        result = json_lines(tmp_path / "work/log/2.jsonl")[-2]
        assert result["queries"] == result["database"] == N_DATABASE

    def test_a_published_checkpoint_and_json_work_unchanged(self, start, dataset, tmp_path):
        dataset.drop_blocks()
        rng = np.random.default_rng(0)
        for name, count in (("test", N_DATABASE), ("query", 6)):
            write_features(
                dataset.folder / f"{name}.h5", rng.standard_normal((count, 10, 40)).astype(np.float32)
            )
        dataset.change(hidden_size=40, max_frames=10)
        status, out, err = start("--stage", "test", "--weight_path", GOLDEN / "wsch_mini.pth")
        assert (status, err) == (0, "")
        assert "32 bits" in out
        result = json_lines(tmp_path / "work/log/1.jsonl")[-2]
        assert (result["bits"], result["seed"]) == (32, None)
        # 10 frames: ties are possible, and they are counted
        store = open_store(load_config(dataset.path), load_config(dataset.path).test, "ram", "cpu")
        codes = model.load_published(GOLDEN / "wsch_mini.pth").hash(store.read(np.arange(N_DATABASE)))
        assert result["zero_code_entries"] >= (codes == 0).sum() > 0
        dataset.change(dataset="fcv", protocol="database")
        out = start("--stage", "test", "--weight_path", GOLDEN / "wsch_mini.pth")[1]
        assert " 0.492" in out
        assert "published settings" not in out  # it does not say its own

    def test_published_rows(self, start, dataset):
        dataset.change(dataset="fcv", protocol="database")
        start("--stage", "pretrain", "--max_iter", 0, 0, "--hashcode_size", 64)
        _, out, _ = start("--stage", "test", "--hashcode_size", 64)
        row = next(line for line in out.splitlines() if line.startswith("published WSCH"))
        assert row.split()[2:] == ["0.558", "0.424", "0.384", "0.362", "0.345", "0.328"]

    def test_the_published_tables(self):
        tables = json.loads(published.PATH.read_text())
        rows = tables["WSCH"]
        bits = ["32", "64", "128"]
        assert [list(row)[-3:] for row in rows.values()] == [bits] * 3
        assert [*rows] == ["fcv", "activitynet", "yfcc"]
        row = published.published_row("WSCH", "activitynet", 64)
        assert (row.map[20], *row[1:]) == (0.242, "query", 1000, 3758, {})
        row = published.published_row("BTH", "fcv", 64)
        assert (row.map[10], *row[1:]) == (0.375, "database", 45600, 45600, {})
        assert published.published_row("WSCH", "yfcc", 64)[1:] == ("database", None, None, {})
        assert [*tables["ConMH"]] == ["fcv", "activitynet", "yfcc-full"]
        row = published.published_row("ConMH", "yfcc-full", 32)
        assert (row.map[60], *row[1:4]) == (0.135, "query", 1000, 101256)
        assert published.published_row("WSCH", "gtsrb", 64) == ({}, None, None, None, {})
