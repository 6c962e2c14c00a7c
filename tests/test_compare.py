"""The table of runs: what is grouped, averaged, split and said, against numbers worked by hand."""

import csv
import io
import os
import re
import shutil
from pathlib import Path

import pytest
from synthetic import json_lines, write_log

from tools.compare import main

SETTINGS = {"stage": "pipeline", "result_weight_dir": "weight", "hashcode_size": 16, "precision": "float32",
            "lr": 1e-3, "cfg": {"a": 0.02, "n_clusters": 5}, "device": "cpu"}  # fmt: skip

CHOSEN = "cfg.n_clusters 5; lr 0.001"  # of these, what is not published


def write_pipeline(
    first, seed, ap, lr=1e-3, folder="log", commit="abcdef0123", settings=None, without=(), **result
):
    """Logs of the runs of a pipeline: pretrain of 2 epochs of 1.5 s, train of one of 4 s, test."""
    settings = SETTINGS | {"seed": seed, "lr": lr} | (settings or {})
    numbers = [first, first + 1, first + 2]
    where = [os.path.join(folder, f"{n}.jsonl") for n in numbers]
    weights = [f"weight/{n}_16.pth" for n in numbers]
    reserved = {"event": "reserved", "runs": numbers, "stages": ["pretrain", "train", "test"], "options": {},
                "settings": settings, "dataset": {}}  # fmt: skip
    starts = [
        {"event": "start", "stage": stage, "run": n, "settings": settings, "seed": seed, "git_commit": commit}
        for stage, n in zip(reserved["stages"], numbers, strict=True)
    ]
    epoch = {"event": "epoch", "losses": {}, "epoch": 1}
    write_log(Path(where[0]), reserved, starts[0], *[epoch | {"seconds": 1.5}] * 2)
    write_log(Path(where[1]), starts[1] | {"weights": weights[0]}, epoch | {"seconds": 4})
    content = {
        "event": "result",
        "stage": "test",
        "dataset": "tiny|set",
        "bits": 16,
        "protocol": "query",
        "origin": f"train on tiny|set, seed {seed}",
        "mAP": {"5": ap, "20": ap / 2},
        "chance": {"5": 0.1, "20": 0.1},
        "published": {"5": 0.9},
        "database": 100,
        "queries": 10,
        "weights": weights[1],
        "system": "WSCH",
        "seed": seed,
        "precision_setting": "float32",
        "exclude_self": False,
        "mAP_whole": ap / 4,
        "precision_radius_2": 0.25,
        "by_radius": {"precision": [1, 0.5], "recall": [0, 0.5], "pairs": [2, 3], "relevant_pairs": [1, 1]},
    }
    content = {key: value for key, value in (content | result).items() if key not in without}
    write_log(Path(where[2]), starts[2], content, {"event": "end"})
    return where[2]


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        return status, *capsys.readouterr()

    return run


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


class TestValues:
    def test_markdown(self, compare):
        """Of 0.2, 0.4 and 0.6 the mean is 0.4 and the sample deviation 0.2, the population's 0.163."""
        for first, seed, ap in ((1, 1, 0.2), (4, 2, 0.4), (7, 3, 0.6)):
            write_pipeline(first, seed, ap)
        status, out, err = compare("log")
        assert (status, err) == (0, "")
        assert out.splitlines() == [
            "dataset tiny\\|set, protocol query, precision float32, commit abcdef0; "
            "settings of WSCH that are not the published ones: cfg.n_clusters 5; lr 0.001; "
            "mean ± standard deviation over seeds",
            "",
            "| system | bits | seeds | mAP@5 | mAP@20 | mAP, whole | precision, radius 2 | training, s |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            "| WSCH | 16 | 3 | 0.400 ± 0.200 | 0.200 ± 0.100 | 0.100 ± 0.050 | 0.250 ± 0.000 | 7.0 ± 0.0 |",
            "| WSCH, published | 16 | - | 0.900 | - | - | - | - |",
        ]

    def test_csv_has_every_metric(self, compare):
        write_pipeline(1, 1, 0.2)
        write_pipeline(4, 2, 0.6, commit="1234567890")
        rows = rows_of(compare("log", "--format", "csv")[1])
        found = {(row["metric"], row["at"]): (row["n"], float(row["mean"]), row["published"]) for row in rows}
        assert found == {
            ("mAP", "5"): ("2", 0.4, "0.9"),
            ("mAP", "20"): ("2", 0.2, ""),
            ("chance", "5"): ("2", 0.1, ""),
            ("chance", "20"): ("2", 0.1, ""),
            ("mAP_whole", ""): ("2", 0.1, ""),
            ("precision_radius_2", ""): ("2", 0.25, ""),
            ("precision_by_radius", "0"): ("2", 1, ""),
            ("precision_by_radius", "1"): ("2", 0.5, ""),
            ("recall_by_radius", "0"): ("2", 0, ""),
            ("recall_by_radius", "1"): ("2", 0.5, ""),
            ("seconds", ""): ("2", 7, ""),
        }
        assert float(rows[0]["sd"]) == pytest.approx(0.4 / 2**0.5)
        said = [rows[0][key] for key in ("dataset", "protocol", "system", "method", "bits", "precision")]
        assert said == ["tiny|set", "query", "WSCH", "", "16", "float32"]
        assert [rows[0][key] for key in ("settings", "seeds", "commit")] == [CHOSEN, "1 2", "1234567 abcdef0"]

    def test_commits_are_of_training_and_test(self, compare):
        path = write_pipeline(1, 1, 0.2)
        start, *rest = json_lines(path)
        write_log(Path(path), start | {"git_commit": "1234567890"}, *rest)
        assert ", commit 1234567 abcdef0;" in compare(path)[1]

    def test_a_launch_whose_stages_name_no_checkpoint(self, compare, tmp_path):
        """As BTH's, with a preparation between its trainings: all runs before it in its launch count."""
        reserved, pretrain, *epochs = json_lines(write_pipeline(1, 1, 0.2).replace("3", "1"))
        test, result, end = json_lines("log/3.jsonl")
        runs = {"runs": [1, 2, 3, 4], "stages": ["pretrain", "prepare", "train", "test"]}
        train = pretrain | {"stage": "train", "run": 3, "weights": None}
        write_log(tmp_path / "log/1.jsonl", reserved | runs, pretrain, *epochs)
        write_log(tmp_path / "log/2.jsonl", pretrain | {"stage": "prepare", "run": 2})
        write_log(tmp_path / "log/3.jsonl", train, epochs[0] | {"seconds": 10})
        write_log(tmp_path / "log/4.jsonl", test | {"run": 4}, result | {"weights": "weight/3_16.pth"}, end)
        status, out, err = compare("log")
        assert (status, err) == (0, "")
        assert "| 13.0 |" in out
        (tmp_path / "log/2.jsonl").unlink()
        assert "no complete log of the training of weight/3_16.pth" in compare("log")[2]

    def test_one_seed_has_no_deviation(self, compare):
        path = write_pipeline(1, 1, 0.2)
        assert "| WSCH | 16 | 1 | 0.200 |" in compare(path)[1]
        assert rows_of(compare(path, "--format", "csv")[1])[0]["sd"] == ""

    def test_latex(self, compare):
        """A table for every dataset."""
        write_pipeline(1, 1, 0.2, dataset=r"a_b&c%d#e$f{g}h~i^j\k<l>")
        write_pipeline(4, 1, 0.3, dataset="b")
        first, second = compare("log", "--format", "latex", "--metrics", "mAP")[1].split("\n\n")
        name = r"a\_b\&c\%d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"
        assert rf"\caption{{dataset {name}\textless{{}}l\textgreater{{}}, protocol query, " in first
        assert second.splitlines()[4:] == [
            r"\begin{tabular}{llrrr}",
            r"\toprule",
            r"system & bits & seeds & mAP@5 & mAP@20 \\",
            r"\midrule",
            r"WSCH & 16 & 1 & 0.300 & 0.150 \\",
            r"WSCH, published & 16 & - & 0.900 & - \\",
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]

    def test_a_dataset_has_the_columns_of_its_own_runs(self, compare):
        write_pipeline(1, 1, 0.2)
        write_pipeline(4, 1, 0.3, dataset="b", mAP={"7": 0.3})
        headers = [line for line in compare("log", "--metrics", "mAP")[1].splitlines() if "| system" in line]
        assert headers == ["| system | bits | seeds | mAP@7 |", "| system | bits | seeds | mAP@5 | mAP@20 |"]

    def test_columns_that_were_asked_for(self, compare):
        path = write_pipeline(1, 1, 0.2)
        asked = (path, "--metrics", "recall_by_radius", "chance")
        header, narrow = (compare(*asked, *at)[1].splitlines()[2] for at in ((), ("--at", "1", "20")))
        assert header.split(" | ")[3:] == ["recall, radius 0", "recall, radius 1", "chance@5", "chance@20 |"]
        assert narrow.split(" | ")[3:] == ["recall, radius 1", "chance@20 |"]

    def test_a_metric_that_few_runs_have_says_so(self, compare):
        write_pipeline(1, 1, 0.2, without=["mAP_whole"])
        write_pipeline(4, 2, 0.4)
        assert "| 0.100 (n = 1) |" in compare("log")[1]


class TestGroups:
    def test_what_differs_by_nature_stands_apart(self, compare):
        for first, change in enumerate(
            ({}, {"bits": 32}, {"bits": None}, {"dataset": "b"}, {"protocol": "database"}, {"system": "BTH"},
             {"precision_setting": "bfloat16"}, {"exclude_self": True}), 1,
        ):  # fmt: skip
            write_pipeline(3 * first, 1, 0.2, **change)
        status, out, err = compare("log", "--metrics", "mAP")
        assert (status, err) == (0, "")
        measured = re.findall(r"\| (?:WSCH|BTH) \| .*0\.200", out)
        assert len(measured) == 8
        assert "| query without itself |" in out
        assert "| real |" in out

    def test_other_settings_are_split_and_named(self, compare):
        """Of the stages that trained the network, also where they ran by themselves."""
        write_pipeline(1, 1, 0.2)
        write_pipeline(4, 2, 0.4, lr=1e-4, settings={"device": "cuda", "result_log_dir": "x"})
        write_pipeline(7, 3, 0.4, settings={"cfg": {"a": 0.02, "n_clusters": 9}})
        rows = rows_of(compare("log", "--format", "csv")[1])
        assert {row["settings"]: row["seeds"] for row in rows} == {
            "cfg.n_clusters 5; lr 0.001": "1",
            "cfg.n_clusters 5; lr 0.0001": "2",
            "cfg.n_clusters 9; lr 0.001": "3",
        }

    def test_a_stage_with_settings_of_its_own(self, compare):
        write_pipeline(1, 1, 0.2)
        write_pipeline(4, 2, 0.4)
        first = json_lines("log/4.jsonl")
        first[1]["settings"] = first[1]["settings"] | {"lr": 0.5}
        write_log(Path("log/4.jsonl"), *first)
        rows = rows_of(compare("log", "--format", "csv")[1])
        expected = {"lr 0.001; cfg.n_clusters 5", "lr 0.5 then 0.001; cfg.n_clusters 5"}
        assert {row["settings"] for row in rows} == expected

    def test_a_setting_that_older_logs_lack_splits_nothing(self, compare):
        write_pipeline(1, 1, 0.2)
        write_pipeline(4, 2, 0.4, settings={"new": 7})
        assert "| WSCH | 16 | 2 |" in compare("log")[1]
        write_pipeline(7, 3, 0.4, settings={"new": 8})
        rows = rows_of(compare("log", "--format", "csv")[1])
        assert {row["settings"]: row["seeds"] for row in rows} == {
            f"not logged; {CHOSEN}": "1",
            f"new 7; {CHOSEN}": "2",
            f"new 8; {CHOSEN}": "3",
        }

    def test_settings_are_compared_across_bits(self, compare):
        write_pipeline(1, 1, 0.2, bits=32, settings={"cfg": {"a": 0.1, "n_clusters": 5}})
        write_pipeline(4, 1, 0.4, bits=64)
        out = compare("log", "--metrics", "mAP")[1]
        assert "settings of WSCH that are not the published ones: cfg.n_clusters 5; lr 0.001;" in out
        assert "| WSCH | 32 | cfg.a 0.1 | 1 | 0.200 |" in out
        assert "| WSCH | 64 | cfg.a 0.02 | 1 | 0.400 |" in out

    def test_the_published_settings_are_not_named(self, compare):
        """An older log does not state all of them: what it lacks had its default."""
        published = {"lr": 1e-4, "cfg": {"n_clusters": 800}, "max_iter": [100, 300]}
        write_pipeline(1, 1, 0.2, settings=published)
        write_pipeline(4, 2, 0.4, settings=published | {"hidden_size": 1024})
        write_pipeline(7, 3, 0.4, settings=published | {"decoder_size": 512})
        rows = rows_of(compare("log", "--format", "csv")[1])
        assert {row["settings"]: row["seeds"] for row in rows} == {
            "decoder_size 1024": "1 2",
            "decoder_size 512": "3",
        }

    def test_beside_a_published_network_ours_keep_their_settings(self, compare):
        write_pipeline(1, 1, 0.2, settings={"cfg": {"a": 0.1}})
        write_pipeline(4, 2, 0.4, weights="published.pth", origin="published weights")
        out = compare("log", "--metrics", "mAP")[1]
        assert "| cfg.a 0.1; lr 0.001; network train on tiny\\|set; training pretrain train | 1 |" in out
        assert "| network published weights; training log not found | 1 |" in out

    def test_databases_of_other_sizes_are_told_apart(self, compare):
        """Of one system, and of two."""
        write_pipeline(1, 1, 0.2)
        write_pipeline(4, 2, 0.4, database=50)
        write_pipeline(7, 1, 0.4, database=50, system="BTH")
        out = compare("log", "--metrics", "mAP")[1]
        assert "| WSCH | 16 | database 100; queries 10 | 1 | 0.200 |" in out
        assert "| WSCH | 16 | database 50; queries 10 | 1 | 0.400 |" in out
        assert "| BTH | 16 | database 50; queries 10 | 1 | 0.400 |" in out

    def test_the_network_before_training_is_another(self, compare):
        write_pipeline(1, 1, 0.2)
        write_pipeline(4, 2, 0.4, weights="weight/4_16.pth", origin="pretrain on tiny|set, seed 2")
        out = compare("log")[1]
        assert "network pretrain on tiny\\|set; training pretrain |" in out
        assert "network train on tiny\\|set; training pretrain train |" in out
        assert "| 3.0 |" in out

    def test_baselines_are_grouped_by_method(self, compare):
        for first, method in ((1, "pca"), (4, "itq"), (7, "itq")):
            write_pipeline(first, first, 0.2, system="tools.baseline", method=method, stage="tools.baseline",
                           without=["weights"], published={}, origin=f"signs, seed {first}")  # fmt: skip
        status, out, err = compare("log", "--metrics", "mAP")
        assert (status, err) == (0, "")
        assert [line.split(" | ")[:3] for line in out.splitlines()[4:]] == [
            ["| tools.baseline itq", "16", "2"],
            ["| tools.baseline pca", "16", "1"],
        ]

    def test_of_the_same_seed_the_newest_counts(self, compare):
        write_pipeline(1, 1, 0.2, time="2026-01-03 00:00:00")
        write_pipeline(4, 1, 0.4, time="2026-01-02 00:00:00")
        write_pipeline(7, 2, 0.4)
        status, out, err = compare("log")
        assert "| WSCH | 16 | 2 | 0.300 ± 0.141 |" in out
        assert err == "log/6.jsonl: of the same seed as the newer log/3.jsonl, which counts alone\n"

    def test_a_log_that_is_named_twice_counts_once(self, compare):
        path = write_pipeline(1, 1, 0.2)
        assert compare(path, "log", "./log/../log")[1:] == compare(path)[1:]


class TestOlderLogs:
    def test_the_seed_is_that_of_the_training(self, compare):
        new = ("system", "seed", "precision_setting", "exclude_self", "mAP_whole", "by_radius")
        write_pipeline(1, 1, 0.2, without=new)
        write_pipeline(4, 2, 0.4)
        status, out, err = compare("log", "--metrics", "mAP")
        assert (status, err) == (0, "")
        assert "| WSCH | 16 | 2 | 0.300 ± 0.141 |" in out

    def test_without_the_logs_of_the_training(self, compare, tmp_path):
        """Not mixed with runs of known settings, and said."""
        write_pipeline(1, 1, 0.2)
        write_pipeline(4, None, 0.4, weights="published.pth", origin="published weights")
        write_pipeline(7, 3, 0.4)
        (tmp_path / "log/7.jsonl").unlink()
        status, out, err = compare("log")
        assert err.splitlines() == [
            "log/6.jsonl: no complete log of the training of published.pth: seconds and settings not known",
            "log/6.jsonl: seed not known: a run by itself",
            "log/9.jsonl: no complete log of the training of weight/8_16.pth: seconds and settings not known",
        ]
        assert "network published weights; training log not found | 1 | 0.400 |" in out
        assert "training log not found | 1 | 0.400 | 0.200 | 0.100 | 0.250 | - |" in out

    def test_a_training_in_another_folder(self, compare, tmp_path):
        """Found where the checkpoint is the same, once a log of that folder is compared too."""
        write_pipeline(1, 1, 0.2)
        shutil.copytree("log", "tests")
        (tmp_path / "tests/2.jsonl").unlink()
        assert "not known" in compare("tests/3.jsonl")[2]
        (tmp_path / "log/3.jsonl").unlink()
        write_pipeline(4, 2, 0.2)
        assert compare("tests/3.jsonl", "log")[2] == ""


class TestRefusals:
    def refused(self, compare, *arguments):
        status, out, err = compare(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        return err

    def test_no_result(self, compare):
        write_pipeline(1, 1, 0.2)
        err = self.refused(compare, "log/1.jsonl", "log/2.jsonl")
        assert "error: log/1.jsonl, log/2.jsonl: no result of a test" in err
        assert err.endswith(": log/1.jsonl is of pretrain, log/2.jsonl is of train; "
                            "the newest one there with a result is log/3.jsonl\n")  # fmt: skip
        Path("log/3.jsonl").unlink()
        assert "; stages test, bth.test and" in self.refused(compare, "log")
        assert "nowhere: no such log" in self.refused(compare, "nowhere")

    def test_a_metric_that_no_run_has(self, compare):
        path = write_pipeline(1, 1, 0.2)
        assert "--metrics: no run has 'recall'" in self.refused(compare, path, "--metrics", "recall")
        assert "invalid choice: 'x'" in self.refused(compare, path, "--metrics", "x")
        assert "--at: no run has a metric at [7]" in self.refused(
            compare, path, "--metrics", "mAP", "--at", "7"
        )

    @pytest.mark.parametrize(
        "damage",
        [{"mAP": {"5": "x"}}, {"mAP": {"x": 1}}, {"mAP": 3}, {"bits": "16"}, {"mAP_whole": "x"},
         {"published": 1}, {"by_radius": [1]}],
    )  # fmt: skip
    def test_a_damaged_result(self, compare, damage):
        path = write_pipeline(1, 1, 0.2, **damage)
        assert f"{path}: damaged: '{next(iter(damage))}'" in self.refused(compare, path)

    def test_a_file_that_cannot_be_written_stays(self, compare, tmp_path):
        path = write_pipeline(1, 1, 0.2)
        assert compare(path, "--out", "table.md")[1:] == ("", "")
        assert (tmp_path / "table.md").read_text() == compare(path)[1]
        assert "cannot be written" in self.refused(compare, path, "--out", "table.md/x.md")


def test_from_training_to_table(start, dataset, capsys):
    """Seconds are the sum of the epochs of both stages, whatever their commands were."""
    for seed in ("1", "2"):
        assert start("--seed", seed)[0] == 0
    for stage in ("pretrain", "train", "test"):
        assert start("--seed", "3", "--stage", stage)[0] == 0
    capsys.readouterr()
    assert main(["log", "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = {(row["metric"], row["at"]): row for row in rows_of(out)}
    assert len(rows) == len(rows_of(out))  # one group
    results = [json_lines(f"log/{n}.jsonl")[-2] for n in (3, 6, 9)]
    assert float(rows["mAP", "5"]["mean"]) == pytest.approx(sum(each["mAP"]["5"] for each in results) / 3)
    text = "".join(open(f"log/{n}.jsonl").read() for n in (1, 2, 4, 5, 7, 8))
    seconds = sum(map(float, re.findall('"epoch": [0-9]+, "seconds": ([0-9.]+)', text)))
    assert float(rows["seconds", ""]["mean"]) == pytest.approx(seconds / 3)
    assert rows["mAP", "5"]["seeds"] == "1 2 3"
