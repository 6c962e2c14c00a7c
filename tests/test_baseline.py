"""The baselines: each method against its definition, the table, what is refused, and starting again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import N_DATABASE, N_QUERY, N_TRAIN, WIDTH, json_lines, killed, write_features

import tools.baseline
from data import open_store
from engine.runs import Run
from engine.systems import resolve
from metrics import evaluate
from tools.baseline import METHODS, ROUNDS, evaluate_cosine, fit, itq, principal_components

CPU = torch.device("cpu")


@pytest.fixture
def baseline(start):
    return lambda method, *options: start("--stage", "tools.baseline", "--method", method, *options)


def result_of(number):
    return next(line for line in json_lines(f"log/{number}.jsonl") if line["event"] == "result")


def numbers_of(result):
    """All but the time and the names of files."""
    return {key: value for key, value in result.items() if key not in ("time", "launch", "codes")}


def correlated(n, width, seed=0, offset=5.0):
    """Points whose variances fall off, in no direction of an axis, far from the origin."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.standard_normal((width, width)))[0] * 0.8 ** np.arange(width)
    return rng.standard_normal((n, width)) @ mix.T + offset


class TestStage:
    @pytest.mark.parametrize("method", METHODS)
    def test_prints_the_table_and_logs_the_result(self, baseline, method):
        status, out, err = baseline(method, "--seed", 7)
        assert (status, err) == (0, "")
        values = "real values" if method == "mean" else "16 bits"
        title = f"synthetic, {values}, 6 queries, 104 videos; {method}: {METHODS[method]}, seed 7"
        lines = out.splitlines()
        rows = [line.split("  ")[0] for line in lines[lines.index(title) + 1 :]]
        assert rows[:3] == ["mAP@K", method, ""]
        assert rows[5] == "chance"
        result = result_of(1)
        found = [result[key] for key in ("stage", "method", "bits", "seed", "protocol")]
        assert found == ["tools.baseline", method, None if method == "mean" else 16, 7, "query"]
        assert list(result["mAP"]) == ["5", "20", "40", "60", "80", "100"]
        assert result["mAP"]["5"] > 5 * result["chance"]["5"] / 2
        assert json_lines("log/1.jsonl")[-1]["event"] == "end"
        coded = method != "mean"
        assert coded == ("codes" in result) == ("by_radius" in result) == ("precision_radius_2" in result)
        assert (coded, True) == (Path("result/1_test.h5").exists(), Path("result/1.json").exists())
        assert result["system"] == "tools.baseline"

    def test_cuts_and_bits_are_those_of_the_test(self, baseline, dataset):
        dataset.change(run=dataset.content["run"] | {"ks": [3], "hashcode_size": 8})
        assert baseline("pca")[0] == 0
        assert (list(result_of(1)["mAP"]), result_of(1)["bits"]) == (["3"], 8)
        assert baseline("pca", "--protocol", "database")[0] == 0
        assert result_of(2)["queries"] == N_DATABASE
        for method in ("pca", "mean"):  # of videos that find themselves first, and do not
            assert baseline(method, "--protocol", "database", "--ks", 1)[0] == 0
            assert baseline(method, "--protocol", "database", "--ks", 1, "--exclude_self", "true")[0] == 0
        for kept, left_out in ((3, 4), (5, 6)):
            assert result_of(kept)["mAP"]["1"] == 1
            assert result_of(kept)["recall"]["1"] == pytest.approx(1 / 26)
            assert result_of(left_out)["recall"]["1"] <= 1 / 25
            assert result_of(left_out)["chance"]["1"] == pytest.approx(25 / 103)

    @pytest.mark.parametrize("method", ["lsh", "itq"])
    def test_the_seed_decides(self, baseline, method):
        for seed in (1, 1, 2):
            baseline(method, "--seed", seed)
        first, again, other = (result_of(n) for n in (1, 2, 3))
        assert numbers_of(first) == numbers_of(again)
        assert first["mAP"] != other["mAP"]

    def test_killed_it_starts_again(self, baseline, monkeypatch):
        baseline("itq")
        with monkeypatch.context() as patch:
            patch.setattr(Run, "end", killed)
            assert baseline("itq")[0] == 130
        assert baseline("itq", "--resume")[0] == 0
        assert [line["event"] for line in json_lines("log/2.jsonl")] == ["reserved", "start", "result", "end"]
        assert numbers_of(result_of(2)) == numbers_of(result_of(1))
        assert json.loads(Path("result/2.json").read_text()) == result_of(2)

    def test_itq_is_better_than_pca_where_variances_differ(self, baseline, dataset):
        rng = np.random.default_rng(0)
        classes = correlated(N_QUERY, WIDTH)
        for name, features in dataset.features.items():
            means = classes[np.arange(len(features)) % 4]
            noise = 2.5 * rng.standard_normal(features.shape) @ np.diag(0.9 ** np.arange(WIDTH))
            write_features(dataset.folder / f"{name}.h5", (means[:, None] + noise).astype(np.float32))
        baseline("pca")
        pca = result_of(1)["mAP_tie_expected"]["20"]
        for number in (2, 3, 4):
            baseline("itq", "--seed", number)
            assert result_of(number)["mAP_tie_expected"]["20"] > pca


class TestMean:
    def test_cosines_of_codes_give_the_metrics_of_codes(self, monkeypatch):
        """Of 16 bits and length 1: 1 - cosine is exactly an eighth of the Hamming distance."""
        monkeypatch.setattr(tools.baseline, "COSINES", 250)
        rng = np.random.default_rng(0)
        codes = [torch.tensor(rng.choice([-1.0, 1.0], (n, 16)), dtype=torch.float32) for n in (13, 90)]
        labels = [torch.tensor(rng.random((n, 5)) < 0.3) for n in (13, 90)]
        assert not labels[0].any(1).all()
        for ks in ([5, 20, 90], [7, 1]):
            self.compare(codes, labels, ks)
        self.compare(codes[1:] * 2, labels[1:] * 2, [5, 20, 89], exclude_self=True)

    @staticmethod
    def compare(codes, labels, ks, exclude_self=False):
        found = evaluate_cosine(*(each / 4 for each in codes), *labels, ks, exclude_self)
        expected = evaluate(*codes, *labels, ks, exclude_self)
        assert found.map_whole == pytest.approx(expected.map_whole, rel=1e-13)
        assert found == replace(expected, map_whole=found.map_whole, by_radius=None)

    def test_against_a_slow_loop_from_the_features(self, baseline, dataset):
        """Of frames of unlike lengths, which stay as they are."""
        rng = np.random.default_rng(0)
        for name, features in dataset.features.items():
            features += 3 * rng.standard_normal(features.shape)
            features *= rng.exponential(size=(*features.shape[:2], 1))
            write_features(dataset.folder / f"{name}.h5", features)
        baseline("mean")
        x, y = (dataset.features[name].astype(np.float64).mean(1) for name in ("query", "test"))
        precisions = []
        for video, label in zip(x, dataset.labels["query"], strict=True):
            cosines = [video @ other / np.linalg.norm(video) / np.linalg.norm(other) for other in y]
            order = np.argsort(cosines)[::-1]
            relevant = [bool(label @ dataset.labels["test"][i]) for i in order]
            precisions.append(sum(relevant[i] * sum(relevant[: i + 1]) / (i + 1) for i in range(20)) / 20)
        assert result_of(1)["mAP"]["20"] == pytest.approx(np.mean(precisions))


class TestLsh:
    def test_two_bits_agree_with_one_minus_the_angle_over_pi(self, dataset):
        options = {"stage": "tools.baseline", "method": "lsh", "hashcode_size": 20_000}
        settings = resolve({"data_set_config": str(dataset.path)}, options)
        store = open_store(settings.config, settings.config.train, "disk", "cpu")
        frames = torch.from_numpy(dataset.features["train"])
        codes = fit(store, settings, CPU, None).hash(frames)  # (N, b)
        x = frames.double().mean(1)
        x = torch.nn.functional.normalize(x - x.mean(0))
        angle = (x @ x.T).clamp(-1, 1).arccos()
        agree = (codes @ codes.T / settings.hashcode_size + 1) / 2
        assert torch.allclose(agree.double(), 1 - angle / torch.pi, atol=0.02)
        assert angle.max() - angle.min() > 1.5


class TestPca:
    def test_equals_the_svd_of_the_centred_points(self):
        x = correlated(200, 30, offset=100.0)
        mean, directions, variance = principal_components(np.split(x, [50, 51, 180]), 30, 12)
        assert mean == pytest.approx(x.mean(0))
        _, singular, right = np.linalg.svd(x - x.mean(0))
        assert variance == pytest.approx(singular[:12] ** 2 / 200)
        assert abs((directions * right[:12].T).sum(0)) == pytest.approx(1)
        assert directions.shape == (30, 12)

    def test_codes_are_the_signs_of_its_components(self, dataset):
        settings = resolve(
            {"data_set_config": str(dataset.path)}, {"stage": "tools.baseline", "method": "pca"}
        )
        store = open_store(settings.config, settings.config.train, "disk", "cpu")
        codes = fit(store, settings, CPU, None).hash(torch.from_numpy(dataset.features["test"])).numpy()
        x, y = (dataset.features[name].astype(np.float64).mean(1) for name in ("train", "test"))
        expected = np.sign((y - x.mean(0)) @ np.linalg.svd(x - x.mean(0))[2][:16].T)
        assert (abs((codes * expected).sum(0)) == N_DATABASE).all()  # a direction has two signs


class TestItq:
    def test_the_quantisation_error_falls_each_round(self):
        v = correlated(500, 12, offset=0.0).astype(np.float32)
        rotation, errors = itq(v, np.random.default_rng(0))
        assert len(errors) == ROUNDS
        assert (np.diff(errors) < 1e-12).all()
        assert (np.diff(errors[:5]) < 0).all()
        assert errors[-1] < 0.7 * errors[0]
        assert rotation.T @ rotation == pytest.approx(np.eye(12), abs=1e-12)

    def test_the_error_is_what_it_says(self, monkeypatch):
        monkeypatch.setattr(tools.baseline, "ROTATED", 128)
        v = correlated(500, 12, offset=0.0)
        v /= np.sqrt(np.square(v).mean())
        rotation, errors = itq(v, np.random.default_rng(0))
        rotated = v @ rotation
        assert np.square(np.sign(rotated) - rotated).mean() == pytest.approx(errors[-1], rel=1e-3)  # next B
        assert itq(100 * v, np.random.default_rng(0))[1] == pytest.approx(errors)

    def test_finds_the_rotation_of_a_cube(self):
        rng = np.random.default_rng(0)
        turn = np.linalg.qr(rng.standard_normal((8, 8)))[0]
        codes = rng.choice([-1, 1], (1000, 8))
        rotation, errors = itq(codes @ turn, rng)
        assert errors[-1] == pytest.approx(0, abs=1e-9)
        assert abs(turn @ rotation).max(0) == pytest.approx(1)  # a cube has symmetries


class TestRefusals:
    @pytest.mark.parametrize("method", ["pca", "itq"])
    def test_more_bits_than_the_features_are_wide(self, baseline, method):
        status, _, err = baseline(method, "--hashcode_size", 32)
        assert status == 2
        problem = f"must be at most 24, the width of the features, for method {method}, found 32"
        assert f"error: 'hashcode_size' {problem}\n" == err

    def test_more_bits_than_the_videos_have_directions(self, baseline):
        status, _, err = baseline("pca", "--hashcode_size", N_TRAIN)
        assert (status, err.count("\n")) == (2, 1)
        assert "train.h5: the 20 training videos vary in 19 directions, too few for 'hashcode_size' 20" in err

    def test_random_projections_may_be_more_than_the_width(self, baseline):
        assert baseline("lsh", "--hashcode_size", 32)[0] == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [(("--method", "sh"), "'method' must be mean, lsh, pca or itq, found \"sh\""),
         (("--weight_path", "x.pth"), "'weight_path' must be None: stage tools.baseline does not start from"),
         (("--precision", "bfloat16"), "'precision' must be float32 for a baseline, found bfloat16"),
         (("--ks", "105"), "mAP@105 needs a database of 105 videos, found 104")],
    )  # fmt: skip
    def test_settings(self, baseline, options, message):
        status, _, err = baseline("pca", *options)
        assert (status, err.count("\n")) == (2, 1)
        assert message in err

    @pytest.mark.parametrize("method", METHODS)
    def test_what_is_not_finite(self, baseline, dataset, method):
        features = dataset.features["test"].copy()
        features[50] = 3e38
        write_features(dataset.folder / "test.h5", features)
        status, _, err = baseline(method)
        assert status == 2
        assert "test.h5: video 50: not finite: " in err
