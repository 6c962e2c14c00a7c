"""ConMH's stages from end to end: what they compute, and that the tools take what they leave."""

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import GOLDEN, N_FRAMES, N_TRAIN, WIDTH, json_lines, write_features

from conmh.model import ConMH, reconstruction_loss
from conmh.settings import fresh_network
from data import draw_views, generator
from engine.systems import resolve
from formats.codefile import read_code_file
from layers import contrastive_loss, video_embedding
from tools import compare, gallery, plot
from tools.codes import hash_videos, load_network


def weights(number):
    return torch.load(f"weight/{number}_16.pth", weights_only=True)["model"]


class TestPipeline:
    def test_its_logs_weights_and_codes_are_what_the_tools_take(self, start, dataset, capsys):
        status, out, err = start("--stage", "conmh.pipeline")
        assert (status, err) == (0, "")
        rows = [line.split("  ")[0] for line in out.splitlines()]
        assert [row for row in rows if row in ("trained", "untrained", "chance")] == [
            "trained",
            "untrained",
            "chance",
        ]
        assert list(json_lines("log/2.jsonl")[-2]["mAP"]) == ["5", "10", "20", "40", "60", "80", "100"]
        assert [line["event"] for line in json_lines("log/1.jsonl")] == [
            "reserved", "start", "epoch", "epoch", "end"]  # fmt: skip
        for tool, arguments, said in (
            (compare.main, ["log"], "ConMH"),
            (plot.main, ["log", "--data", "map.csv"], "map.csv: map of 1 of 2 logs"),
            (plot.main, ["log", "--figure", "losses", "--data", "losses.csv"], "losses of 1 of 2 logs"),
            (gallery.main, ["log/2.jsonl", "--out", "page.html"], "page.html"),
        ):
            assert tool(arguments) == 0
            assert said in capsys.readouterr().out
        assert start("--stage", "tools.encode", "--weight_path", "weight/1_16.pth")[0] == 0
        net = load_network("weight/1_16.pth", "cpu")
        assert isinstance(net, ConMH)
        found = read_code_file(Path("code/3_16_test.h5"))
        assert np.array_equal(found.exact(), hash_videos(net, dataset.features["test"]))
        # Heads are read off a checkpoint of ours, not off the settings.
        assert start("--stage", "conmh.test", "--weight_path", "weight/1_16.pth")[0] == 0
        assert json_lines("log/4.jsonl")[-2]["mAP"] == json_lines("log/2.jsonl")[-2]["mAP"]

    def test_what_contradicts_the_settings_is_named(self, start):
        assert start("--stage", "conmh.train", "--max_iter", 0)[0] == 0
        for option, message in (
            (("--conmh.n_heads", 2), "its conmh.n_heads is 3, the settings say 2"),
            (("--conmh.n_blocks", 3), "its conmh.n_blocks is 2, the settings say 3"),
            (("--decoder_size", 14), "its decoder_size is 12, the settings say 14"),
        ):
            status, _, err = start("--stage", "conmh.test", "--weight_path", "weight/1_16.pth", *option)
            assert (status, err.count("\n")) == (2, 1)
            assert message in err

    def test_a_published_checkpoint_is_tested_with_the_heads_of_the_settings(self, start, dataset):
        dataset.drop_blocks()
        for name in ("test", "query"):
            frames = np.random.default_rng(0).standard_normal((len(dataset.features[name]), N_FRAMES, 40))
            write_features(dataset.folder / f"{name}.h5", frames.astype(np.float32))
        dataset.change(hidden_size=40)
        options = "--stage", "conmh.test", "--weight_path", GOLDEN / "conmh_tiny.pth"
        seen = []
        for heads in ((), ("--conmh.n_heads", 8)):  # 8 heads of 6 are as wide as 6 of 8
            status, out, err = start(*options, *heads)
            assert (status, err) == (0, "")
            assert "16 bits" in out
            seen.append(json_lines(f"log/{len(seen) + 1}.jsonl")[-2]["mAP"])
        assert seen[0] != seen[1]
        status, _, err = start(*options, "--conmh.n_heads", 5)
        assert (status, err.count("\n")) == (2, 1)
        assert "conmh_tiny.pth: not the weights of this network (n_heads = 5 makes 150 rows of" in err


class TestTraining:
    def test_is_adam_on_the_errors_and_the_agreement_of_both_views(self, start, dataset):
        options = ("--conmh.a", 0.5, "--conmh.lr_decay", 0.5, "--conmh.lr_decay_epochs", 1)
        assert start("--stage", "conmh.train", *options)[0] == 0
        settings = resolve({"data_set_config": str(dataset.path)}, {"stage": "conmh.train"})
        net = fresh_network(settings, WIDTH)
        adam, losses = torch.optim.Adam(net.parameters()), []
        for epoch in range(2):
            adam.param_groups[0]["lr"] = 1e-3 * 0.5**epoch
            order, masks = draw_views(generator(3346, "conmh.train", epoch, 0), N_TRAIN, N_FRAMES, 0.5)
            total = {"reconstruction": 0.0, "contrastive": 0.0}
            for batch in np.array_split(order, [8, 16]):  # 8, 8 and the last 4
                frames = torch.from_numpy(dataset.features["train"][batch])
                views = [net(frames, mask[batch]) for mask in masks]
                reconstruction = sum(
                    reconstruction_loss(view.reconstruction, frames, mask[batch])
                    for view, mask in zip(views, masks, strict=True)
                )
                embedding = [video_embedding(view.codes) for view in views]
                terms = {
                    "reconstruction": reconstruction,
                    "contrastive": 0.5 * contrastive_loss(*embedding, 0.5, 0.1),
                }
                adam.zero_grad()
                sum(terms.values()).backward()
                adam.step()
                for term, value in terms.items():
                    total[term] += value.item() * len(batch) / N_TRAIN
            losses.append(total)
        lines = json_lines("log/1.jsonl")
        logged = [line["losses"]["views"] for line in lines if line["event"] == "epoch"]
        for found, expected in zip(logged, losses, strict=True):
            assert list(found) == list(expected)
            assert found == pytest.approx(expected, rel=1e-4)
        for name, value in weights(1).items():
            assert torch.allclose(value, net.state_dict()[name], rtol=0, atol=1e-4), name

    def test_initial_weights_are_the_seeds(self, start):
        for seed in (1, 1, 2):
            assert start("--stage", "conmh.train", "--max_iter", 0, "--seed", seed)[0] == 0
        one, again, other = (weights(n) for n in (1, 2, 3))
        assert all(torch.equal(value, again[name]) for name, value in one.items())
        assert not torch.equal(one["encoder.embed.weight"], other["encoder.embed.weight"])

    def test_precision_reaches_the_network(self, start, monkeypatch):
        monkeypatch.setattr("engine.device.has_bfloat16", lambda: True)
        seen, frame_codes = set(), ConMH.frame_codes
        monkeypatch.setattr(
            ConMH, "frame_codes", lambda net, *rest: seen.add(net.bfloat16) or frame_codes(net, *rest)
        )
        for stage in ("train", "test"):
            assert start("--stage", f"conmh.{stage}", "--precision", "bfloat16")[0] == 0
            assert seen == {True}
            seen.clear()
