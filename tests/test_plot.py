"""Figures: the numbers behind them by hand, the files they leave, what is said of what is missing."""

import csv
import importlib
import json
import statistics

import numpy as np
import pytest
from synthetic import ROOT, need, write_codes

from tools.figures import FIGURES, draw_cuts
from tools.logs import read_log
from tools.plot import EVENTS, main
from tools.series import correlation, principal_components
from tools.trials import grouped, labels, trials_of

BITS = 2
BY_RADIUS = {
    "precision": [0.5, 0.25, 0.125],
    "recall": [0.1, 0.6, 1.0],
    "pairs": [2, 6, 8],
    "relevant_pairs": [1, 1, 0],
}
SETTINGS = {
    "data_set_config": "Json/signs.json",
    "hashcode_size": 64,
    "lr": 0.001,
    "result_weight_dir": "weight",
}
MAGIC = {".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF-", ".svg": b"<?xml"}


@pytest.fixture
def write_log(tmp_path, monkeypatch):
    """Write a run's log; a number names it. One with a result is of training and test at once."""
    monkeypatch.chdir(tmp_path)

    def write(number, *events, end=True, settings=None, **start):
        settings = SETTINGS | (settings or {})
        start = {
            "event": "start", "time": "2030-01-01 00:00:00", "stage": "test", "run": number, "seed": 1,
            "settings": settings,
        } | start  # fmt: skip
        weights = {"weights": f"weight/{number}_{settings['hashcode_size']}.pth"}
        events = [weights | event if event["event"] == "result" else event for event in events]
        lines = [start, *events, *([{"event": "end"}] if end else [])]
        path = tmp_path / "log" / f"{number}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(each) + "\n" for each in lines))
        return path

    return write


def result(map5=0.5, seed=1, **values):
    facts = {
        "stage": "test",
        "dataset": "signs",
        "bits": BITS,
        "protocol": "query",
        "origin": f"train on signs, seed {seed}",
        "system": "WSCH",
        "seed": seed,
        "precision_setting": "float32",
        "mAP": {"5": map5, "20": map5 / 2},
        "ceiling": {"5": 1.0, "20": 0.8},
        "chance": {"5": 0.1, "20": 0.05},
        "by_radius": BY_RADIUS,
    }
    return {"event": "result", "time": "2030-01-01 00:00:00"} | facts | values


def epoch(number, **losses):
    losses = losses or {"contrastive": {"reconstruction": 2.0 / number, "contrastive": 3.0 / number}}
    rates = {"lr": 0.001, "videos_per_second": 100.0}
    return {
        "event": "epoch",
        "time": f"2030-01-01 00:00:{number:02}",
        "epoch": number,
        "losses": losses,
        **rates,
    }


def evaluation(number):
    tables = {"mAP": {"5": number / 10, "20": number / 20, "100": number / 100}}
    return {"event": "evaluation", "time": "2030-01-01 00:01:00", "epoch": number, **tables}


def numbers(name, *paths):
    return FIGURES[name].numbers(grouped(trials_of([read_log(path) for path in paths])))


def series(*paths):
    return labels(grouped(trials_of([read_log(path) for path in paths])))


def plot(capsys, *arguments):
    status = main([str(each) for each in arguments])
    return status, *capsys.readouterr()


def lack(monkeypatch, package):
    """As if a package were not there."""
    there = importlib.import_module

    def missing(module):
        if package in module.split("."):
            raise ImportError(module)
        return there(module)

    monkeypatch.setattr("formats.files.importlib.import_module", missing)


class TestSeries:
    def test_named_by_what_differs(self, write_log):
        paths = [
            write_log(1, result()),
            write_log(2, result(origin="pretrain on signs, seed 2", seed=2)),
            write_log(3, result(precision_setting="bfloat16", bits=64, protocol="database")),
            write_log(4, result(system="tools.baseline", method="itq", origin="signs of rotated ...")),
            write_log(5, result(system="tools.baseline", method="mean", bits=None, exclude_self=True)),
        ]
        assert series(*paths) == [
            ("signs, protocol database", "WSCH, 64 bits, bfloat16"),
            ("signs", "WSCH, 2 bits, float32, network pretrain on signs"),
            ("signs", "WSCH, 2 bits, float32, network train on signs"),
            ("signs", "baseline itq, 2 bits, float32"),
            ("signs, protocol query without itself", "baseline mean, real values, float32"),
        ]
        assert series(*paths[3:4]) == [("signs", "baseline itq, 2 bits")]

    def test_another_setting_of_the_training_is_another_curve(self, write_log, capsys, tmp_path):
        for number, (seed, lr) in enumerate(((1, 0.001), (2, 0.001), (1, 0.0003)), 1):
            write_log(number, result(number / 10, seed=seed), settings={"lr": lr})
        status, _, err = plot(capsys, "log", "--data", "x.csv")
        assert (status, err) == (0, "")
        rows = [row for row in csv.DictReader((tmp_path / "x.csv").open()) if row["K"] == "5"]
        found = {
            row["series"]: (row["runs"], float(row["value"])) for row in rows if row["quantity"] == "mAP"
        }
        assert found == {
            "WSCH, 2 bits, lr 0.0003": ("1", 0.3),
            "WSCH, 2 bits, lr 0.001": ("2", pytest.approx(0.15)),
        }

    def test_stages_of_training_have_one_name(self, write_log):
        """Panels tell them apart; a setting splits them as it does tests."""
        paths = [write_log(n, epoch(1), stage=stage) for n, stage in enumerate(("pretrain", "train"), 1)]
        assert series(*paths) == [("signs", "WSCH, 64 bits")]
        other = write_log(3, epoch(1), stage="train", settings={"lr": 0.5})
        assert [name for _, name in series(*paths, other)] == [
            "WSCH, 64 bits, lr 0.001", "WSCH, 64 bits, lr 0.5"]  # fmt: skip

    def test_logs_of_version_1_0(self):
        wsch, bth = ([ROOT / f"tests/before/log/{n}.jsonl" for n in pair] for pair in ((1, 3), (6, 7)))
        assert set(series(*wsch)) == {("synthetic", "WSCH, 16 bits")}
        assert set(series(*bth)) == {("synthetic", "BTH, 16 bits")}

    def test_the_newest_of_a_seed_counts(self, write_log, capsys, tmp_path):
        write_log(1, result(0.9, time="2030-01-02 00:00:00"))
        write_log(2, result(0.1))
        write_log(3, result(0.7, seed=2))
        status, out, err = plot(capsys, "log", "--data", "x.csv")
        assert (status, out) == (0, "x.csv: map of 2 of 3 logs\n")
        assert err == "log/2.jsonl: of the same seed as the newer log/1.jsonl, which counts alone\n"
        assert ",2,mAP,5,0.8," in (tmp_path / "x.csv").read_text()

    def test_figures_of_single_runs_show_all(self, write_log, capsys):
        for number in (1, 2):
            write_log(number, epoch(1), stage="train")
        assert plot(capsys, "log", "--data", "x.csv")[1:] == ("x.csv: losses of 2 of 2 logs\n", "")


class TestNumbers:
    def test_map_of_several_seeds(self, write_log):
        paths = [write_log(n, result(value, seed=n)) for n, value in enumerate((0.2, 0.4, 0.6), 1)]
        paths.append(write_log(4, result(0.8, bits=64)))
        rows = numbers("map", *paths)
        found = {(row["series"], row["quantity"], row["K"]): row for row in rows}
        assert len(found) == len(rows) == 2 * 3 * 2
        row = found["WSCH, 2 bits", "mAP", 5]
        assert row["value"] == pytest.approx(0.4)
        assert row["value_sd"] == pytest.approx(0.2)
        assert row["runs"] == 3
        assert found["WSCH, 2 bits", "mAP", 20]["value_sd"] == pytest.approx(0.1)
        assert found["WSCH, 2 bits", "ceiling", 20]["value"] == pytest.approx(0.8)
        assert found["WSCH, 2 bits", "chance", 5]["value_sd"] == 0
        row = found["WSCH, 64 bits", "mAP", 5]
        assert (row["value"], row["value_sd"], row["runs"]) == (0.8, None, 1)

    def test_what_older_runs_lack(self, write_log):
        """Averaged over those that have it; runs at other cuts are another series."""
        paths = write_log(1, result(0.2)), write_log(2, result(0.4, seed=2, ceiling={}))
        rows = numbers("map", *paths)
        assert [(row["quantity"], row["K"], row["runs"]) for row in rows[:4]] == [
            ("mAP", 5, 2), ("mAP", 20, 2), ("ceiling", 5, 1), ("ceiling", 20, 1)]  # fmt: skip
        other = write_log(3, result(mAP={"5": 0.4, "10": 0.3}, seed=3))
        assert {row["series"] for row in numbers("map", *paths, other)} == {
            "WSCH, 2 bits, ks 5 10", "WSCH, 2 bits, ks 5 20"}  # fmt: skip

    def test_precision_and_recall_by_radius(self, write_log):
        other = BY_RADIUS | {"precision": [0.7, 0.35, 0.125], "recall": [0.3, 0.6, 1.0]}
        paths = write_log(1, result()), write_log(2, result(by_radius=other, seed=2))
        rows = numbers("precision-recall", *paths)
        assert [row["radius"] for row in rows] == [0, 1, 2]
        assert [row["precision"] for row in rows] == pytest.approx([0.6, 0.3, 0.125])
        assert rows[0]["precision_sd"] == pytest.approx(statistics.stdev([0.5, 0.7]))
        assert [row["recall"] for row in rows] == pytest.approx([0.2, 0.6, 1.0])
        assert rows[2]["recall_sd"] == 0

    def test_distances_are_shares_of_their_kind(self, write_log):
        rows = numbers("distances", write_log(1, result()))
        found = [(row["kind"], row["distance"], row["share"]) for row in rows]
        assert found[:3] == [("relevant", 0, 0.5), ("relevant", 1, 0.5), ("relevant", 2, 0.0)]
        assert found[3:] == [("other", 0, 1 / 14), ("other", 1, 5 / 14), ("other", 2, 8 / 14)]

    def test_distances_without_relevant_pairs(self, write_log):
        rows = numbers("distances", write_log(1, result(by_radius=BY_RADIUS | {"relevant_pairs": [0, 0, 0]})))
        assert [row["share"] for row in rows if row["kind"] == "relevant"] == [0, 0, 0]

    def test_balance_and_correlation(self, write_log, tmp_path):
        codes = np.array([[1, 1, 1], [1, -1, 1], [-1, -1, 1], [-1, -1, 1]], np.int8)
        file = write_codes(tmp_path / "x.h5", codes)
        rows = numbers(
            "bits", write_log(1, result(bits=3, codes={"database": str(file), "query": str(file)}))
        )
        shares = [row["value"] for row in rows if row["quantity"] == "share of +1"]
        assert shares == [0.5, 0.25, 1.0]
        values = [row["value"] for row in rows if row["quantity"] == "correlation"]  # of bits 1 0, 2 0, 2 1
        assert values[0] == pytest.approx(3**-0.5)
        assert values[1:] == [None, None]

    def test_a_zero_is_half_a_one_in_the_balance(self, write_log, tmp_path):
        codes = np.array([[1, 0], [-1, 0], [0, 0], [0, 1]], np.int8)
        file = str(write_codes(tmp_path / "x.h5", codes))
        rows = numbers("bits", write_log(1, result(codes={"database": file, "query": file})))
        assert [row["value"] for row in rows if row["quantity"] == "share of +1"] == [0.5, 0.625]

    def test_correlation_against_a_slow_loop(self):
        codes = np.random.default_rng(0).choice([-1, 0, 1], (50, 7)).astype(np.int8)
        bits = codes.T.tolist()
        expected = [[abs(statistics.correlation(one, other)) for other in bits] for one in bits]
        assert correlation(codes) == pytest.approx(np.array(expected))

    def test_map_of_codes(self, write_log, tmp_path):
        codes = np.random.default_rng(0).choice([-1, 1], (30, 8)).astype(np.int8)
        labels = np.zeros((30, 4), np.uint8)
        labels[0, [1, 3]] = labels[1, 2] = 1
        file = write_codes(tmp_path / "x.h5", codes, labels)
        rows = numbers(
            "codes", write_log(1, result(bits=8, codes={"database": str(file), "query": str(file)}))
        )
        assert [row["class"] for row in rows[:3]] == ["class 1", "class 2", None]
        centred = codes - codes.mean(0)
        left, singular, _ = np.linalg.svd(centred)
        for axis, (name, share) in enumerate((("x", "x_share"), ("y", "y_share"))):
            places = np.array([row[name] for row in rows])
            expected = left[:, axis] * singular[axis]
            assert np.abs(places @ expected) == pytest.approx(expected @ expected)
            assert places @ places == pytest.approx(expected @ expected)
            assert rows[0][share] == pytest.approx(singular[axis] ** 2 / (singular**2).sum())

    def test_classes_have_the_names_that_stand_beside_the_features(self, write_log, tmp_path):
        (tmp_path / "classes.txt").write_text("stop\n30\n")
        sources = json.dumps([str(tmp_path / "test_feats.h5")])
        codes, labels = np.eye(2, dtype=np.int8) * 2 - 1, np.eye(2, dtype=np.uint8)
        file = str(write_codes(tmp_path / "x.h5", codes, labels, sources=sources))
        rows = numbers("codes", write_log(1, result(codes={"database": file, "query": file})))
        assert [row["class"] for row in rows] == ["stop", "class 30"]

    def test_a_direction_points_to_its_largest_entry(self):
        codes = np.array([[1, -1, 1], [-1, 1, 1], [1, -1, -1], [1, -1, 1]], np.int8)
        places, _ = principal_components(codes)
        again, _ = principal_components(-codes)
        assert places == pytest.approx(-again)
        assert places[1, 0] < 0 < places[0, 0]

    def test_losses(self, write_log):
        path = write_log(1, epoch(1), epoch(2), evaluation(2), stage="train")
        rows = numbers("losses", path)
        found = [(row["pass"], row["term"], row["epoch"], row["value"]) for row in rows]
        assert found == [
            ("contrastive", "reconstruction", 1, 2.0),
            ("contrastive", "contrastive", 1, 3.0),
            ("contrastive", "reconstruction", 2, 1.0),
            ("contrastive", "contrastive", 2, 1.5),
            ("evaluation", "mAP@5", 2, 0.2),
            ("evaluation", "mAP@20", 2, 0.1),
            ("evaluation", "mAP@100", 2, 0.02),
        ]
        assert {(row["stage"], row["series"]) for row in rows} == {("train", "WSCH, 64 bits")}


@pytest.fixture
def tested(write_log, tmp_path):
    """Logs of two seeds with codes, and of training, in one folder."""
    rng = np.random.default_rng(0)
    for number in (1, 2):
        labels = np.eye(12, dtype=np.uint8)[rng.integers(0, 12, 40)]
        file = write_codes(tmp_path / f"{number}.h5", rng.choice([-1, 1], (40, BITS)).astype(np.int8), labels)
        write_log(number, result(number / 5, seed=number, codes={"database": str(file), "query": str(file)}))
    return write_log(3, epoch(1), epoch(2), evaluation(1), evaluation(2), stage="pretrain").parent


TEXTS = {
    "losses": ["epoch", "contrastive loss", "mAP@5", "mAP@100", "WSCH, 64 bits"],
    "map": ["mAP@K", "K (nearest videos)", "WSCH, 2 bits (2 runs)", "ceiling", "chance", "signs"],
    "precision-recall": ["precision", "recall", "WSCH, 2 bits (2 runs)"],
    "distances": ["Hamming distance (bits)", "share of pairs (%)", "relevant pairs", "other pairs"],
    "bits": ["videos with +1 (%)", "absolute correlation", "signs: WSCH, 2 bits, log/2.jsonl"],
    "codes": ["principal component 1", "other classes", ">class ", "signs: WSCH, 2 bits, log/2.jsonl"],
}


class TestPictures:
    @pytest.mark.parametrize("name", FIGURES)
    def test_labels_in_the_svg(self, tested, capsys, tmp_path, name):
        need("matplotlib")
        status, out, _ = plot(capsys, tested, "--figure", name, "--out", tmp_path / "x.svg")
        assert (status, out.count("\n")) == (0, 1)
        text = (tmp_path / "x.svg").read_text(encoding="utf-8")
        assert [each for each in TEXTS[name] if each not in text] == []
        assert "mAP@20" not in text  # of evaluations, the smallest and the largest K alone

    @pytest.mark.parametrize("kind", MAGIC)
    def test_formats(self, tested, capsys, tmp_path, kind):
        need("matplotlib")
        pictures = []
        for name in ("x", "y"):
            path = tmp_path / f"{name}{kind.upper()}"
            status, out, _ = plot(capsys, tested, "--out", path)
            assert (status, out) == (0, f"{path}: map of 2 of 3 logs\n")
            pictures.append(path.read_bytes())
        assert pictures[0] == pictures[1]
        assert pictures[0].startswith(MAGIC[kind])
        assert len(pictures[0]) > 5000

    def test_one_point_is_seen_and_the_ceiling_too(self):
        """A marker and a bar of the deviation; a series says how many runs it has from panel to panel."""
        need("matplotlib.figure")
        rows = [{"dataset": dataset, "series": "a", "quantity": quantity, "K": 5, "runs": runs,
                 "value": value, "value_sd": sd}
                for dataset, runs, sd in (("x", 3, 0.1), ("y", 1, None))
                for quantity, value in (("mAP", 0.2), ("ceiling", 0.9), ("chance", 0.01))]  # fmt: skip
        figure = draw_cuts(rows)
        for ax in figure.axes:
            assert ax.get_ylim()[1] > 0.9
            assert {line.get_marker() for line in ax.lines} - {"|"} >= {"o", "_"}
        assert [len(ax.containers) for ax in figure.axes] == [3, 0]  # bars
        assert "a (1 to 3 runs)" in [text.get_text() for text in figure.legends[0].get_texts()]

    def test_csv_needs_no_matplotlib(self, write_log, capsys, tmp_path, monkeypatch):
        lack(monkeypatch, "matplotlib")
        path = write_log(1, result(1 / 3))
        assert plot(capsys, path, "--data", tmp_path / "x.csv")[0] == 0
        assert (tmp_path / "x.csv").read_text().splitlines() == [
            "dataset,series,runs,quantity,K,value,value_sd",
            'signs,"WSCH, 2 bits",1,mAP,5,0.3333333333333333,',
            'signs,"WSCH, 2 bits",1,mAP,20,0.16666666666666666,',
            'signs,"WSCH, 2 bits",1,ceiling,5,1.0,',
            'signs,"WSCH, 2 bits",1,ceiling,20,0.8,',
            'signs,"WSCH, 2 bits",1,chance,5,0.1,',
            'signs,"WSCH, 2 bits",1,chance,20,0.05,',
        ]

    def test_tsne(self, tested, capsys, tmp_path):
        need("sklearn")
        options = ("--figure", "codes", "--method", "tsne", "--data", tmp_path / "x.csv")
        assert plot(capsys, tested / "1.jsonl", *options)[0] == 0
        rows = list(csv.DictReader(open(tmp_path / "x.csv")))  # noqa: SIM115
        assert len(rows) == 40
        assert np.isfinite([[float(row["x"]), float(row["y"])] for row in rows]).all()
        assert {(row["method"], row["x_share"]) for row in rows} == {("tsne", "")}

    def test_codes_that_are_all_the_same(self, write_log, capsys, tmp_path):
        need("matplotlib"), need("sklearn")
        file = write_codes(tmp_path / "x.h5", np.ones((5, 4), np.int8))
        path = write_log(1, result(bits=4, codes={"database": str(file), "query": str(file)}))
        for options in (("bits",), ("codes",), ("codes", "--method", "tsne")):
            assert plot(capsys, path, "--figure", *options, "--out", tmp_path / "x.png")[0] == 0


class TestLogsOfAllKinds:
    def test_a_run_that_goes_on(self, write_log, capsys, tmp_path):
        path = write_log(1, epoch(1), end=False, stage="train")
        with open(path, "a") as file:
            file.write('{"event": "epoch", "epo')
        status, out, err = plot(capsys, path, "--data", tmp_path / "x.csv")
        assert (status, err) == (0, "")
        assert out == f"{tmp_path}/x.csv: losses of 1 of 1 logs; not ended: {[str(path)]}\n"

    def test_a_run_that_has_just_begun(self, write_log, capsys, tmp_path):
        path = write_log(1, end=False, stage="train")
        status, _, err = plot(capsys, path, "--data", tmp_path / "x.csv")
        assert (status, err) == (2, f"error: losses: nothing to show: {[str(path)]}: no finished epoch\n")

    @pytest.mark.parametrize("name", ["precision-recall", "distances", "bits", "codes"])
    def test_a_log_from_before(self, capsys, tmp_path, name):
        path = ROOT / "tests/before/log/3.jsonl"
        status, _, err = plot(capsys, path, "--figure", name, "--out", tmp_path / "x.png")
        key = "by_radius" if name in ("precision-recall", "distances") else "codes"
        missing = f"no '{key}', as before version 1.2; test again, with --weight_path"
        assert (status, err) == (2, f"error: {name}: nothing to show: {[str(path)]}: {missing}\n")

    def test_what_a_log_from_before_holds(self, capsys, tmp_path):
        status, out, _ = plot(capsys, ROOT / "tests/before/log", "--data", tmp_path / "x.csv")
        assert (status, out) == (0, f"{tmp_path}/x.csv: map of 2 of 9 logs\n")
        assert "ceiling" not in (tmp_path / "x.csv").read_text()

    def test_what_cannot_be_shown_is_left_out(self, write_log, capsys, tmp_path):
        paths = [
            write_log(1, result()),
            write_log(2, result(bits=None, by_radius={})),
            write_log(3, epoch(1)),
        ]
        status, _, err = plot(capsys, *paths, "--figure", "distances", "--data", tmp_path / "x.csv")
        assert status == 0
        assert err.splitlines() == [
            "of 3 logs, 1 are shown; left out 1: real values, no codes (--method lsh, pca or itq); "
            "1: no result, as of trainings, extractions and what has not ended",
        ]

    def test_bits_that_were_asked_for(self, write_log, capsys, tmp_path):
        write_log(1, result(bits=2))
        write_log(2, result(bits=3))
        write_log(3, result(bits=None, by_radius={}))
        write_log(4, epoch(1), settings={"hashcode_size": 3})
        folder = write_log(5, epoch(1), settings={"hashcode_size": 2}).parent
        out = plot(capsys, folder, "--bits", "3", "--data", tmp_path / "x.csv")[1]
        assert out == f"{tmp_path}/x.csv: map of 2 of 3 logs\n"
        status, _, err = plot(capsys, folder / "1.jsonl", "--bits", "3", "--data", tmp_path / "x.csv")
        assert (status, err) == (2, f"error: --bits: no run of [3] bits in {folder}/1.jsonl\n")


class TestTensorBoard:
    def test_read_back(self, write_log, capsys, tmp_path, monkeypatch):
        module = need("tensorboard.backend.event_processing.event_accumulator")
        monkeypatch.chdir(tmp_path)
        settings = {"lr": 0.001, "hashcode_size": 64}
        write_log(1, epoch(1), epoch(2), evaluation(2), stage="train", settings=settings)
        write_log(2, result(0.3))
        for _ in range(2):  # the second time in place of the first
            status, out, _ = plot(capsys, "log", "--tensorboard", "board")
            assert (status, out) == (0, "board: 2 logs; to see them: tensorboard --logdir board\n")
        assert sorted(map(str, (tmp_path / "board").rglob("*/*"))) == [
            f"{tmp_path}/board/log-{n}/{EVENTS}" for n in (1, 2)
        ]
        trained, tested = (module.EventAccumulator(str(tmp_path / f"board/log-{n}")).Reload() for n in (1, 2))
        scalars = {tag: [(each.step, pytest.approx(each.value)) for each in trained.Scalars(tag)]
                   for tag in trained.Tags()["scalars"]}  # fmt: skip
        assert scalars == {
            "loss/contrastive/reconstruction": [(1, 2.0), (2, 1.0)],
            "loss/contrastive/contrastive": [(1, 3.0), (2, 1.5)],
            "lr": [(1, 0.001), (2, 0.001)],
            "videos_per_second": [(1, 100.0), (2, 100.0)],
            "evaluation/mAP@5": [(2, 0.2)],
            "evaluation/mAP@20": [(2, 0.1)],
            "evaluation/mAP@100": [(2, 0.02)],
        }
        first, second = trained.Scalars("lr")
        assert second.wall_time - first.wall_time == 1
        assert [(each.step, pytest.approx(each.value)) for each in tested.Scalars("result/mAP@5")] == [
            (0, 0.3)
        ]
        (text,) = trained.Tensors("settings/text_summary")
        assert b"| hashcode_size | 64 |" in text.tensor_proto.string_val[0]

    def test_a_log_from_elsewhere(self, write_log, capsys, tmp_path, monkeypatch):
        need("tensorboard")
        path = write_log(1, epoch(1), stage="train")
        monkeypatch.chdir(ROOT)
        assert plot(capsys, path, "--tensorboard", tmp_path / "board")[0] == 0
        name = "-".join(path.with_suffix("").parts[1:])
        assert (tmp_path / "board" / name / EVENTS).exists()


class TestRefusals:
    def refused(self, capsys, *arguments):
        status, out, err = plot(capsys, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        return err

    def test_options(self, write_log, capsys, tmp_path):
        path = write_log(1, result())
        assert "expected --out FILE, --data FILE.csv or --tensorboard DIR" in self.refused(capsys, path)
        err = self.refused(capsys, path, "--out", tmp_path / "x.jpg")
        assert "--out: expected a name that ends in .png, .pdf, .svg, found x.jpg" in err
        assert "invalid choice: 'x'" in self.refused(capsys, path, "--figure", "x", "--out", "x.png")
        err = self.refused(capsys, path, "--method", "tsne", "--out", tmp_path / "x.png")
        assert "--method: expected with --figure codes, found with map" in err
        assert "no such log" in self.refused(capsys, tmp_path / "none.jsonl", "--out", tmp_path / "x.png")

    @pytest.mark.parametrize(
        ("change", "key"),
        [
            ({"by_radius": BY_RADIUS | {"recall": [0.5]}}, "'by_radius' is not of 2 bits"),
            ({"by_radius": {"pairs": [1, 2, 3]}}, "'by_radius' is not of 2 bits"),
            ({"bits": "2"}, "'bits' of an event 'result' is not as a run writes it"),
            ({"codes": "x.h5"}, "'codes' of an event 'result' is not as a run writes it"),
            ({"codes": {"query": "x.h5"}}, "'codes' of an event 'result' is not as a run writes it"),
            ({"mAP": {}}, "'mAP' of an event 'result' is not as a run writes it"),
            ({"mAP": {"five": 0.5}}, "'mAP' of an event 'result' is not as a run writes it"),
        ],
    )
    def test_a_damaged_result(self, write_log, capsys, tmp_path, change, key):
        path = write_log(1, result(**change))
        err = self.refused(capsys, path, "--figure", "distances", "--out", tmp_path / "x.png")
        assert err == f"error: {path}: damaged: {key}\n"

    def test_a_damaged_epoch(self, write_log, capsys, tmp_path):
        path = write_log(1, epoch(1) | {"lr": "fast"}, stage="train")
        err = self.refused(capsys, path, "--tensorboard", tmp_path / "board")
        assert err == f"error: {path}: damaged: 'lr' of an event 'epoch' is not as a run writes it\n"

    def test_no_numbers(self, write_log, capsys, tmp_path):
        path = write_log(1, epoch(1) | {"losses": {}}, stage="train")
        err = self.refused(capsys, path, "--out", tmp_path / "x.png")
        assert err == f"error: losses: no numbers in {[str(path)]}\n"

    def test_a_stage_that_does_not_exist(self, write_log, capsys, tmp_path):
        path = write_log(1, epoch(1), stage="trian")
        err = self.refused(capsys, path, "--out", tmp_path / "x.png")
        assert f"{path}: 'stage' must be one of" in err

    def test_codes_that_are_gone(self, write_log, capsys, tmp_path):
        path = write_log(1, result(codes={"database": "result/1_test.h5", "query": "q.h5"}))
        err = self.refused(capsys, path, "--figure", "bits", "--out", tmp_path / "x.png")
        assert f"result/1_test.h5: no such file of codes; {path} names it" in err

    def test_too_many_runs(self, write_log, capsys, tmp_path):
        paths = [write_log(n, result(codes={"database": "x.h5", "query": "x.h5"})) for n in range(5)]
        err = self.refused(capsys, *paths, "--figure", "codes", "--out", tmp_path / "x.png")
        assert "codes: shows 4 runs at most, found 5; name fewer logs" in err

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("matplotlib", ("--out", "x.png")),
            ("scikit-learn", ("--figure", "codes", "--method", "tsne", "--data", "x.csv")),
            ("tensorboard", ("--tensorboard", "x")),
        ],
    )
    def test_a_missing_package(self, tested, capsys, monkeypatch, tmp_path, name, options):
        lack(monkeypatch, {"scikit-learn": "sklearn"}.get(name, name))
        *options, last = options
        err = self.refused(capsys, tested / "1.jsonl", *options, tmp_path / "out" / last)
        assert err == f"error: this needs {name}: pip install -r requirements-plot.txt\n"
        assert not list(tmp_path.glob("out/*"))

    def test_a_full_disk_keeps_the_previous_file(self, write_log, capsys, monkeypatch, tmp_path):
        matplotlib = need("matplotlib.figure")
        path, out = write_log(1, result()), tmp_path / "x.png"
        out.write_text("previous")

        def full(self, file, **_):
            file.write_text("half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(matplotlib.Figure, "savefig", full)
        assert f"{out}: cannot be written: No space left" in self.refused(capsys, path, "--out", out)
        assert out.read_text() == "previous"
        assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "x.png"]
