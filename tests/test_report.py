"""What a test leaves: the event, the JSON, the files of codes; self-retrieval; looks at it while training."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from synthetic import N_DATABASE, ROOT, json_lines, killed

import engine.evaluation
import engine.loop
import engine.report
import tools.gallery
import tools.search
from bth.settings import BTHSettings
from conmh.settings import ConMHSettings
from engine.published import other_data, other_settings, published_row
from engine.runs import Run
from engine.systems import read_blocks
from formats.codefile import read_code_file
from formats.files import read_json
from formats.weights import read_checkpoint
from metrics import evaluate
from pretrain import WSCHSettings
from tools.codes import hash_videos, load_network


def result_of(number):
    return next(line for line in json_lines(f"log/{number}.jsonl") if line["event"] == "result")


def exact(path):
    return read_code_file(Path(path)).exact()


@pytest.fixture
def pretrained(start):
    assert start("--stage", "pretrain", "--seed", 5)[0] == 0


class TestResult:
    def test_holds_every_metric_of_the_codes_it_names(self, start, dataset, pretrained):
        status, out, err = start("--stage", "test")
        assert (status, err) == (0, "")
        result = result_of(2)
        assert json.loads(Path("result/2.json").read_text()) == result
        facts = [result[key] for key in ("system", "seed", "precision_setting", "exclude_self", "bits")]
        assert facts == ["WSCH", 5, "float32", False, 16]
        assert result["codes"] == {"database": "result/2_test.h5", "query": "result/2_query.h5"}
        net = load_network("weight/1_16.pth", "cpu")
        database, query = (exact(result["codes"][name]) for name in ("database", "query"))
        assert np.array_equal(database, hash_videos(net, dataset.features["test"]))
        assert np.array_equal(query, hash_videos(net, dataset.features["query"]))
        assert (database == 0).any()
        labels = dataset.labels["query"], dataset.labels["test"]
        found = evaluate(query, database, *labels, [5, 20, 40, 60, 80, 100])
        for key, values in (
            ("mAP", found.map),
            ("mAP_tie_expected", found.tie_averaged_map),
            ("mAP_relevant", found.map_relevant),
            ("mAP_retrieved", found.map_retrieved),
            ("precision", found.precision),
            ("recall", found.recall),
            ("ceiling", found.ceiling),
            ("chance", found.chance),
        ):
            assert result[key] == {str(k): value for k, value in values.items()}, key
        assert result["mAP_whole"] == found.map_whole
        assert result["precision_radius_2"] == found.precision_radius_2 == found.by_radius.precision[2]
        assert result["by_radius"] == vars(found.by_radius)
        assert f"mAP over the whole ranking, ties averaged: {found.map_whole:.4f}" in out
        assert f"precision within Hamming radius 2: {found.precision_radius_2:.4f}" in out
        row = next(line for line in out.splitlines() if line.startswith("ceiling  "))
        assert row.split()[1:] == [f"{value:.4f}" for value in found.ceiling.values()]
        assert "ceiling: mAP@K of a perfect ranking; below 1 where" in out  # 26 of a class

    def test_where_the_ceiling_is_1_it_needs_no_words(self, start, pretrained):
        out = start("--stage", "test", "--ks", 5)[1]
        assert ["ceiling", "1.0000"] in [line.split() for line in out.splitlines()]
        assert "ceiling: " not in out

    def test_one_file_if_the_database_queries_itself(self, start, pretrained):
        start("--stage", "test", "--protocol", "database")
        assert result_of(2)["codes"] == dict.fromkeys(("database", "query"), "result/2_test.h5")
        assert sorted(os.listdir("result")) == ["2.json", "2_test.h5"]

    def test_of_the_codes_that_tools_encode_writes(self, start, pretrained):
        start("--stage", "test")
        start("--stage", "tools.encode")
        for name in ("test", "query"):
            judged, encoded = (
                read_code_file(Path(f"{each}_{name}.h5")) for each in ("result/2", "code/3_16")
            )
            assert judged.digest == encoded.digest
            assert judged.fingerprint == encoded.fingerprint
            assert np.array_equal(judged.known, encoded.known)
            assert np.array_equal(judged.labels, encoded.labels)

    def test_what_comes_next_are_commands_that_run(self, start, pretrained):
        folder = ("--result_dir", "my result", "--result_code_dir", "my code")
        for number, options, gallery in (
            (2, ("test", *folder[:2]), ["log/2.jsonl"]),
            (3, ("test", *folder[:2], "--protocol", "database"), ["log/3.jsonl"]),
            (4, ("tools.encode", *folder[2:]), ["my code/4_16_test.h5", "my code/4_16_query.h5"]),
            (5, ("tools.encode", *folder[2:], "--features", "../dataset/query.h5", "--weight_path", "weight"),
             ["my code/5_16.h5"] * 2),
        ):  # fmt: skip
            status, out, err = start("--stage", *options)
            assert (status, err) == (0, "")
            first, second = (shlex.split(line) for line in out.splitlines()[-2:])
            assert first == ["next:", "python", "-m", "tools.gallery", *gallery, "--out", "gallery.html"]
            codes = gallery if len(gallery) == 2 else [*result_of(number)["codes"].values()]
            assert second == ["python", "-m", "tools.search", *codes, "--out", "near.csv"]
            assert (tools.gallery.main(first[4:]), tools.search.main(second[3:])) == (0, 0)
            assert Path(f"log/{number}.txt").read_text().endswith("".join(out.splitlines(True)[-2:]))

    def test_where_there_are_no_codes_nothing_comes_next(self, start):
        assert "next:" not in start("--stage", "tools.baseline", "--method", "mean")[1]

    def test_a_pipeline_leaves_those_of_the_trained_network(self, start):
        assert start("--seed", 9)[0] == 0
        net = load_network("weight/2_16.pth", "cpu")
        assert read_code_file(Path("result/3_test.h5")).digest == engine.evaluation.digest(
            *net.state_dict().values()
        )
        assert result_of(3)["seed"] == 9


FEW = "6 queries and 104 videos are few: such numbers are mostly luck, compare several seeds"
ITSELF = "every query finds itself, first: codes that know nothing reach about 1/K above chance"


class TestRemarks:
    def test_few_queries(self, start, dataset, pretrained, monkeypatch):
        assert FEW in start("--stage", "test")[1].splitlines()
        monkeypatch.setattr(engine.report, "FEW", 6)
        assert "are few" not in start("--stage", "test")[1]

    def test_a_query_that_finds_itself(self, start, pretrained):
        assert ITSELF not in start("--stage", "test")[1]
        assert ITSELF in start("--stage", "test", "--protocol", "database")[1].splitlines()
        assert ITSELF not in start("--stage", "test", "--protocol", "database", "--exclude_self")[1]

    def test_what_it_then_finds_without_knowing(self):
        """Random codes of 500 videos in 100 classes: 1/K above chance, to a tenth of it."""
        rng = np.random.default_rng(0)
        codes, labels = rng.choice([-1, 1], (500, 64)).astype(np.int8), np.eye(100)[np.arange(500) % 100]
        found = evaluate(codes, codes, labels, labels, [5, 20])
        for k in (5, 20):
            assert found.map[k] - found.chance[k] == pytest.approx(1 / k, rel=0.1)

    def test_where_the_published_row_is_of_other_data(self, start, dataset):
        dataset.change(dataset="fcv", protocol="database", test=["test.h5", "query.h5"], test_label=[
            "test.mat", "query.mat"])  # fmt: skip
        start("--stage", "pretrain", "--hashcode_size", 64, "--max_iter", 0, 0)
        out = start("--stage", "test", "--hashcode_size", 64)[1].splitlines()
        # 28 of 110 videos are relevant at most: the ceiling is 0.28 at 100, 0.35 at 80
        ceiling = next(line for line in out if line.startswith("ceiling  ")).split()
        assert (float(ceiling[-1]) < 0.328, float(ceiling[-2]) > 0.3445) == (True, False)
        reason = "of 45600 queries and 45600 videos, above the ceiling @80 @100"
        assert f"published WSCH: not comparable: {reason}" in out

    def test_where_the_network_has_other_settings(self, start, dataset):
        dataset.change(dataset="fcv", protocol="database")
        said = (
            "not the published settings: batch_size 8 (published 128), max_iter 0 0 (published 100 300), "
            "lr 0.001 (published 0.0001), hidden_size 64 (published 1024), decoder_size 32 (published 1024), "
            "cfg.n_clusters 5 (published 800), cfg.p1 0.7 (published 0.9), cfg.p2 0.5 (published 0.6)"
        )
        start("--stage", "pretrain", "--hashcode_size", 64, "--max_iter", 0, 0)
        test = ("--stage", "test", "--hashcode_size", 64)
        assert said in start(*test, "--max_iter", 100, 300)[1].splitlines()  # what it was trained with
        for options in (("--protocol", "query"), ("--exclude_self",), ("--hashcode_size", 63)):
            assert "published settings" not in start(*test, *options)[1]

    def test_the_published_settings_need_no_words(self):
        settings = WSCHSettings().as_dict()
        row = published_row("WSCH", "fcv", 64)
        assert other_settings(WSCHSettings, settings, row) == []
        assert other_settings(WSCHSettings, {**settings, "ks": [5], "hashcode_size": 32}, row) == []
        row = published_row("BTH", "fcv", 64)
        assert other_settings(BTHSettings, BTHSettings().as_dict(), row) == []
        own = BTHSettings().as_dict() | {"bth": {"n_anchors": 7, "anchors": "mine.h5"}}
        assert other_settings(BTHSettings, own, row) == ["bth.n_anchors 7 (published 2000)"]

    @pytest.mark.parametrize("name", ["fcvid", "Anet", "yfcc-full"])
    def test_the_shipped_blocks_state_the_published_settings(self, name):
        """Those of ConMH are not the same on every dataset."""
        path = ROOT / f"Json/{name}.json"
        content = read_json(path)
        row = published_row("ConMH", content["dataset"], 64)
        record = ConMHSettings().as_dict()
        for key, value in read_blocks(path, content, [])["conmh"].items():
            group, _, leaf = key.rpartition(".")
            (record[group] if group else record)[leaf] = value
        assert row.map
        assert other_settings(ConMHSettings, record, row) == []

    @pytest.mark.parametrize(
        ("queries", "videos", "ceiling", "reasons"),
        [
            (1000, 3758, {5: 1.0, 20: 0.3}, []),
            (1000, 3758, {5: 0.3775, 20: 0.2414}, ["above the ceiling @20"]),  # published 0.378 and 0.242
            (999, 3758, {5: 1.0}, ["of 1000 queries and 3758 videos"]),
            (1000, 3759, {5: 1.0, 7: 0.0}, ["of 1000 queries and 3758 videos"]),
        ],
    )
    def test_other_data(self, queries, videos, ceiling, reasons):
        row = published_row("WSCH", "activitynet", 64)
        assert other_data(row, queries, videos, ceiling) == reasons

    def test_data_of_unknown_size(self):
        assert other_data(published_row("WSCH", "yfcc", 64), 1, 1, {5: 0.1}) == ["above the ceiling @5"]


class TestFaults:
    @pytest.mark.parametrize("function", ["write_code_file", "write_whole", "table"])
    def test_killed_while_it_reports_it_ends_up_the_same(self, start, pretrained, monkeypatch, function):
        start("--stage", "test")
        with monkeypatch.context() as patch:
            patch.setattr(engine.report, function, killed)
            assert start("--stage", "test")[0] == 130
        assert start("--resume")[0] == 0
        self.same_as_the_first()

    def test_killed_before_the_end(self, start, pretrained, monkeypatch):
        start("--stage", "test")
        with monkeypatch.context() as patch:
            patch.setattr(Run, "end", killed)
            assert start("--stage", "test")[0] == 130
        assert start("--resume")[0] == 0
        self.same_as_the_first()

    @staticmethod
    def same_as_the_first():
        events = [line["event"] for line in json_lines("log/3.jsonl")]
        assert events == ["reserved", "start", "result", "end"]
        files = [[Path(f"result/{n}_{name}.h5").read_bytes() for name in ("test", "query")] for n in (2, 3)]
        assert files[0] == files[1]
        assert json.loads(Path("result/3.json").read_text()) == result_of(3)
        first, second = ({**result_of(n), "time": 0, "launch": 0, "codes": 0} for n in (2, 3))
        assert first == second
        assert sorted(os.listdir("result")) == [f"{n}{end}" for n in (2, 3)
                                                for end in (".json", "_query.h5", "_test.h5")]  # fmt: skip

    @pytest.mark.parametrize("stage", ["pipeline", "test", "tools.baseline"])
    def test_a_file_in_the_place_of_the_folder_shows_before_the_work(self, start, pretrained, stage):
        Path("result").write_text("")
        before = sorted(Path().rglob("*"))
        status, out, err = start("--stage", stage)
        assert (status, err) == (2, "error: result: cannot be written to: a file is in the way "
                                    f"({Path('result').absolute()})\n")  # fmt: skip
        assert sorted(Path().rglob("*")) == before

    def test_no_result_is_replaced_by_one_of_another_log_folder(self, start, pretrained):
        start("--stage", "test")
        assert start("--stage", "tools.baseline", "--result_log_dir", "l", "--result_weight_dir", "w")[0] == 0
        assert json_lines("l/3.jsonl")[-2]["method"] == "itq"

    def test_nor_by_one_that_ran_at_the_same_time(self, start, pretrained, monkeypatch):
        """Two launches whose folders are all their own but for this one give out the same number."""
        begun = []

        def meanwhile(*arguments):
            begun.append(arguments)
            if len(begun) == 1:
                options = ("--result_log_dir", "log2", "--result_weight_dir", "weight2")
                assert start("--stage", "tools.baseline", "--method", "pca", *options)[0] == 0
            return evaluate_network(*arguments)

        evaluate_network = engine.evaluation.evaluate_network
        os.remove("log/1.jsonl")
        monkeypatch.setattr(engine.evaluation, "evaluate_network", meanwhile)
        status, _, err = start(
            "--stage", "test", "--weight_path", "weight/1_16.pth", "--result_weight_dir", "w"
        )
        assert status == 2
        assert err == "error: result/1.json: of another run with the same number; move it away, then resume\n"
        assert json.loads(Path("result/1.json").read_text())["method"] == "pca"
        os.rename("result", "elsewhere")
        assert start("--resume")[0] == 0
        assert json.loads(Path("result/1.json").read_text())["system"] == "WSCH"


class TestExcludeSelf:
    def test_leaves_every_video_out_of_its_own_ranking(self, start, dataset, pretrained):
        options = ("--stage", "test", "--protocol", "database", "--exclude_self", "true")
        status, out, err = start(*options)
        assert (status, err) == (0, "")
        title = f"16 bits, the database itself (no video in its own ranking), {N_DATABASE} videos"
        assert title in out
        codes, labels = exact("result/2_test.h5"), dataset.labels["test"]
        found = evaluate(codes, codes, labels, labels, [5], exclude_self=True)
        result = result_of(2)
        assert result["mAP"]["5"] == found.map[5]
        assert result["exclude_self"]
        assert sum(result["by_radius"]["pairs"]) == N_DATABASE * (N_DATABASE - 1)

    def test_is_not_published_practice(self, start, dataset):
        dataset.change(dataset="fcv", protocol="database")
        start("--stage", "pretrain", "--max_iter", 0, 0, "--hashcode_size", 64)
        _, out, _ = start("--stage", "test", "--hashcode_size", 64, "--exclude_self", "true")
        how = "as there a video stays in its own ranking; --exclude_self false compares with it"
        assert f"published WSCH: not shown, {how}" in out
        assert result_of(2)["published"] == {}

    def test_needs_a_database_that_queries_itself(self, start, pretrained):
        status, _, err = start("--stage", "test", "--exclude_self", "true")
        assert status == 2
        assert "'exclude_self' must be false where the query file asks (protocol query), found true" in err

    def test_one_video_fewer_to_rank(self, start, dataset, pretrained):
        options = ("--stage", "test", "--protocol", "database", "--exclude_self", "true", "--ks")
        assert start(*options, N_DATABASE - 1)[0] == 0
        err = start(*options, N_DATABASE)[2]
        assert f"mAP@{N_DATABASE} needs a database of {N_DATABASE + 1} videos, found {N_DATABASE}" in err

    def test_a_class_of_one_video_leaves_nothing_to_find(self, start, dataset, pretrained):
        labels = np.pad(dataset.labels["test"], ((0, 0), (0, 1)))
        labels[7] = [0, 0, 0, 0, 1]
        scipy.io.savemat(dataset.folder / "test.mat", {"labels": labels})
        for name in ("train", "query"):
            padded = np.pad(dataset.labels[name], ((0, 0), (0, 1)))
            scipy.io.savemat(dataset.folder / f"{name}.mat", {"labels": padded})
        dataset.change(num_class=5)
        said = f"1 of {N_DATABASE} queries share no class with the database: each counts 0"
        assert said not in start("--stage", "test", "--protocol", "database")[1]
        assert said in start("--stage", "test", "--protocol", "database", "--exclude_self", "true")[1]


class TestEvalEvery:
    """Looks at the test split while training."""

    @pytest.mark.parametrize("stage", ["pretrain", "train", "bth.pretrain", "conmh.train"])
    def test_changes_no_bit(self, start, stage):
        if stage == "train":
            start("--stage", "pretrain")
        first = 2 if stage == "train" else 1
        options = "--stage", stage, "--max_iter", *([3] if stage == "conmh.train" else [3, 3])
        plain = start(*options)[1]
        status, out, err = start(*options, "--eval_every", 2)
        assert (status, err) == (0, "")
        one, other = (torch.load(f"weight/{n}_16.pth", weights_only=True) for n in (first, first + 1))
        assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())
        moments = [each["optimizer"]["state"][0]["exp_avg"] for each in (one, other)]
        assert torch.equal(*moments)
        events = [line for line in json_lines(f"log/{first + 1}.jsonl") if line["event"] == "evaluation"]
        assert [(event["stage"], event["epoch"]) for event in events] == [(stage, 2), (stage, 3)]
        assert out.count("on the test split, for the log alone: nothing is chosen by it") == 2
        assert "test split" not in plain
        losses = [[line["losses"] for line in json_lines(f"log/{n}.jsonl") if line["event"] == "epoch"]
                  for n in (first, first + 1)]  # fmt: skip
        assert losses[0] == losses[1]

    def test_the_last_look_is_what_the_test_finds(self, start):
        start("--stage", "pretrain", "--eval_every", 5)
        start("--stage", "test")
        events = [line for line in json_lines("log/1.jsonl") if line["event"] == "evaluation"]
        assert [event["epoch"] for event in events] == [2]
        assert events[0]["mAP"] == result_of(2)["mAP"]

    def test_off_it_opens_no_split(self, start, dataset):
        for name in ("test", "query"):
            (dataset.folder / f"{name}.h5").unlink()
        assert start("--stage", "pretrain")[0] == 0
        status, _, err = start("--stage", "pretrain", "--eval_every", 1)
        assert (status, err.count("\n")) == (2, 1)
        assert "test.h5: no such feature file" in err

    @pytest.mark.parametrize(
        ("name", "call", "is_done"),
        [("watch", 2, False), ("watch", 2, True),  # during a look and behind it, before it is logged
         ("save_checkpoint", 4, True), ("save_checkpoint", 5, False), ("save_checkpoint", 5, True)],
    )  # fmt: skip
    def test_resumed_it_has_each_once(self, start, monkeypatch, name, call, is_done):
        """Saved at the start, then before and behind every look: 4 and 5 are those of the second epoch."""
        start("--stage", "pretrain", "--max_iter", 4, 0, "--eval_every", 1)
        function, calls = getattr(engine.loop, name), []

        def stop(*arguments):
            calls.append(arguments)
            if len(calls) == call and not is_done:
                raise KeyboardInterrupt
            found = function(*arguments)
            if len(calls) == call:
                raise KeyboardInterrupt
            return found

        with monkeypatch.context() as patch:
            patch.setattr(engine.loop, name, stop)
            assert start("--stage", "pretrain", "--max_iter", 4, 0, "--eval_every", 1)[0] == 130
        assert start("--resume")[0] == 0
        logs = [json_lines(f"log/{n}.jsonl") for n in (1, 2)]
        for lines in logs:
            found = [(line["event"], line["epoch"]) for line in lines if "epoch" in line]
            assert found == [(event, n) for n in (1, 2, 3, 4) for event in ("epoch", "evaluation")]
        looks = [[line["mAP"] for line in lines if line["event"] == "evaluation"] for lines in logs]
        assert looks[0] == looks[1]
        text = Path("log/2.txt").read_text()
        assert text.count("for the log alone") == 4

    def test_may_be_changed_on_resume(self, start, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(engine.loop, "watch", killed)
            assert start("--stage", "pretrain", "--eval_every", 1)[0] == 130
        assert read_checkpoint(Path("weight/1_16.part.pth"))["position"] == (0, 1, 0)  # no batch is lost
        assert start("--resume", "--eval_every", 0)[0] == 0
        assert [line["event"] for line in json_lines("log/1.jsonl")] == [
            "reserved",
            "start",
            "epoch",
            "epoch",
            "end",
        ]

    def test_looks_without_dropout_and_leaves_the_mode(self, start, monkeypatch):
        modes = []

        def look(net, *arguments):
            hashed = net.hash

            def spied(frames):
                modes.append(net.training)
                return hashed(frames)

            with monkeypatch.context() as patch:
                patch.setattr(net, "hash", spied)
                found = watch(net, *arguments)
            modes.append(net.training)
            return found

        watch = engine.loop.watch
        monkeypatch.setattr(engine.loop, "watch", look)
        assert start("--stage", "bth.pretrain", "--eval_every", 2)[0] == 0
        assert modes == [False] * (len(modes) - 1) + [True]
        assert len(modes) > 2
