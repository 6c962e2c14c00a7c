"""Runs beside each other: numbers, locks, what is done and what is still to do, protocols and cuts."""

import errno
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
import scipy.io
import torch
from synthetic import N_DATABASE, ROOT, json_lines, write_features

import engine.loop
import engine.runs
from engine.runs import find_unfinished
from formats.files import say_without_locks


@pytest.fixture
def interrupt(start, monkeypatch):
    """Start a run and stop it after its n-th save."""

    def until(n, *arguments):
        save, calls = engine.loop.save_checkpoint, []

        def stop(path, content):
            save(path, content)
            calls.append(path)
            if len(calls) == n:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(engine.loop, "save_checkpoint", stop)
            assert start(*arguments)[0] == 130

    return until


def weights(path):
    return torch.load(path, weights_only=True)["model"]


class TestNumbers:
    def test_are_reserved_in_the_weight_folder_too(self, start, interrupt):
        interrupt(5, "--result_log_dir", "log1")  # 1 to 3, stopped in train
        assert start("--stage", "pretrain", "--result_log_dir", "log2", "--seed", 1)[0] == 0
        assert sorted(os.listdir("log2")) == [".lock", "4.jsonl", "4.txt"]
        assert start("--resume", "--result_log_dir", "log1")[0] == 0
        assert json_lines("log1/3.jsonl")[-2]["event"] == "result"
        assert sorted(os.listdir("weight")) == ["1_16.pth", "2_16.pth", "4_16.pth"]

    def test_one_log_folder_and_two_weight_folders(self, start, interrupt):
        interrupt(2, "--result_weight_dir", "w1")
        assert start("--result_weight_dir", "w2", "--seed", 1)[0] == 0
        assert sorted(os.listdir("w2")) == ["4_16.pth", "5_16.pth"]
        assert start("--resume", 1)[0] == 0
        assert sorted(os.listdir("w1")) == ["1_16.pth", "2_16.pth"]

    def test_a_foreign_checkpoint_in_its_place_is_not_its_own(self, start, interrupt):
        start("--stage", "pretrain", "--seed", 1, "--result_log_dir", "elsewhere")
        start("--stage", "train", "--seed", 1, "--result_log_dir", "elsewhere")
        interrupt(2)  # runs 3 to 5, in pretrain
        os.rename("weight/2_16.pth", "weight/4_16.pth")
        status, _, err = start("--resume")
        assert status == 2
        assert "weight/4_16.pth: of another run with the same number; move it away, then resume" in err
        os.rename("weight/4_16.pth", "weight/2_16.pth")
        assert start("--resume")[0] == 0

    def test_a_foreign_part_is_refused(self, start, interrupt):
        interrupt(2, "--stage", "pretrain")
        interrupt(2, "--stage", "pretrain")
        os.replace("weight/2_16.part.pth", "weight/1_16.part.pth")
        assert "1_16.part.pth: a checkpoint of another run with the same number" in start("--resume", 1)[2]

    def test_a_full_disk_is_named(self, start, monkeypatch):
        def full(path, mode, **options):
            if mode == "x":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return open(path, mode, **options)

        monkeypatch.setattr(engine.runs, "open", full, raising=False)
        err = start("--stage", "pretrain")[2]
        assert err == "error: weight: cannot be written to: No space left on device\n"

    def test_a_test_without_its_result_is_done_again(self, start):
        start()
        lines = json_lines("log/3.jsonl")
        with open("log/3.jsonl", "w") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines if line["event"] == "start"))
        status, out, _ = start("--resume")
        assert status == 0
        assert "mAP@K" in out
        assert json_lines("log/3.jsonl")[-2]["mAP"] == lines[-2]["mAP"]

    def test_only_its_own_reservations_are_given_back(self, start, interrupt):
        interrupt(2, "--stage", "pretrain")
        with open("weight/1.reserved", "w") as file:
            file.write("/elsewhere/1.jsonl")
        assert start("--resume")[0] == 0
        assert os.path.exists("weight/1.reserved")


class TestFirstLines:
    """They say where a run works, and how to go on with it."""

    def test_of_a_pipeline(self, start):
        out = start("--result_log_dir", "my log")[1]
        place = f"in {os.getcwd()}, log my log/1.txt to my log/3.txt; if it is interrupted: "
        place += "python run.py --resume 1 --result_log_dir 'my log'"
        assert out.splitlines()[1] == place
        assert open("my log/1.txt").read().splitlines()[1] == place
        assert out.count("if it is interrupted") == 1

    def test_the_command_goes_on_with_it(self, start, interrupt, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["/some where/run.py"])
        interrupt(2, "--stage", "pretrain")
        (line,) = [line for line in open("log/1.txt") if line.startswith("in ")]
        before, _, command = line.partition("; if it is interrupted: ")
        assert before == f"in {os.getcwd()}, log log/1.txt"
        python, script, *arguments = shlex.split(command)
        assert (python, script) == ("python", "/some where/run.py")
        status, out, _ = start(*arguments)
        assert (status, "resumed run 1" in out) == (0, True)


class TestLocks:
    def test_a_log_of_another_user_does_not_stop_new_runs(self, start, interrupt, monkeypatch):
        interrupt(2, "--stage", "pretrain")

        def denied(*_):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(
            engine.runs,
            "open",
            lambda path, mode="r", **rest: (
                denied() if mode == "r+" and str(path) == "log/1.jsonl" else open(path, mode, **rest)
            ),
            raising=False,
        )
        assert start("--stage", "pretrain")[0] == 0
        assert "run 1 is under way in another process, or another user's" in start("--resume", 1)[2]

    def test_a_run_is_locked_before_others_can_see_it(self, start, monkeypatch):
        seen = []
        write_whole = engine.runs.write_whole

        def look(path, write):
            write_whole(path, write)
            seen.append(find_unfinished(path.parent))

        monkeypatch.setattr(engine.runs, "write_whole", look)
        assert start("--stage", "pretrain")[0] == 0
        assert seen == [None]

    def test_what_ended_while_its_lock_was_waited_for_is_not_resumed(self, start, interrupt, monkeypatch):
        interrupt(2, "--stage", "pretrain")
        take_lock = engine.runs.take_lock

        def ends_first(path):
            with open(path, "a") as file:
                file.write('{"event": "end"}\n')
            return take_lock(path)

        monkeypatch.setattr(engine.runs, "take_lock", ends_first)
        assert "--resume: no unfinished run in log" in start("--resume")[2]

    def test_files_are_open_for_writing_as_nfs_wants(self, start, monkeypatch):
        flock = fcntl.flock

        def strict(file, operation):
            if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise OSError(errno.EBADF, "Bad file descriptor")
            flock(file, operation)

        monkeypatch.setattr(fcntl, "flock", strict)
        assert start("--stage", "pretrain")[0] == 0
        assert start("--resume")[0] == 2

    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
    def test_a_file_system_without_locks_is_said_once(self, start, monkeypatch, number):
        def none(*_):
            raise OSError(number, os.strerror(number))

        say_without_locks.cache_clear()
        monkeypatch.setattr(fcntl, "flock", none)
        status, out, _ = start("--stage", "pretrain")
        assert status == 0
        assert out.count("log: no file locks here") == 1


class TestLogs:
    def test_a_deleted_text_is_no_loss(self, start, interrupt):
        interrupt(2, "--stage", "pretrain")
        os.remove("log/1.txt")
        assert start("--resume")[0] == 0

    @pytest.mark.parametrize(
        "change",
        [
            lambda record: record["settings"].pop("stage"),
            lambda record: record["settings"].pop("result_weight_dir"),
            lambda record: record["settings"].update(stage="x.y"),
            lambda record: record["options"].update(unheard_of=3),
            lambda record: record.pop("options"),
            lambda record: record.update(dataset=5),
            lambda record: record.update(stages=["pretrain", "test"], runs=[1, 0]),
        ],
    )
    def test_a_strange_one_does_not_stop_new_runs(self, start, interrupt, change):
        interrupt(2, "--stage", "pretrain")
        first, *rest = open("log/1.jsonl").read().splitlines()
        record = json.loads(first)
        change(record)
        with open("log/1.jsonl", "w") as file:
            file.write("\n".join([json.dumps(record), *rest]) + "\n")
        assert start("--stage", "pretrain")[0] == 0
        assert os.path.exists("weight/2_16.pth")
        status, _, err = start("--resume", 1)
        assert (status, err.count("\n")) == (2, 1)

    def test_a_name_that_the_terminal_cannot_show_costs_no_table(self, start, dataset, spawn, monkeypatch):
        dataset.change(dataset="数据")
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")
        process = spawn()
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert r"\u6570\u636e, 16 bits, 6 queries" in out

    def test_a_closed_error_output_costs_no_run(self, start, monkeypatch):
        monkeypatch.setattr(sys, "stderr", None)
        assert start("--stage", "pretrain")[0] == 0

    def test_ctrl_c_while_importing_ends_in_one_line(self, tmp_path):
        (tmp_path / "torch.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
        path = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]"
        code = f"{path}; import engine; engine.listen(); import engine.launch"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1] == b"stopped; nothing was begun\n"


class TestMemory:
    @pytest.mark.parametrize(
        "error",
        [
            MemoryError("Unable to allocate 168. GiB"),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        ],
    )
    def test_too_little_ends_in_one_line(self, start, monkeypatch, error):
        def fail(*_):
            raise error

        monkeypatch.setattr(torch.optim.Adam, "step", fail)
        status, _, err = start("--stage", "pretrain")
        assert status == 2
        assert err == "error: out of memory; a smaller batch_size needs less, and 'memory' disk\n"


class TestProtocol:
    def test_decides_who_asks(self, start):
        start("--stage", "pretrain")
        out = start("--stage", "test", "--protocol", "database")[1]
        assert f"synthetic, 16 bits, the database itself, {N_DATABASE} videos" in out
        result = json_lines("log/2.jsonl")[-2]
        assert (result["queries"], result["protocol"]) == (N_DATABASE, "database")

    def test_by_the_dataset_json(self, start, dataset):
        dataset.change(protocol="database", query="none.h5", query_label="none.mat")  # not needed
        start("--stage", "pretrain")
        assert "the database itself" in start("--stage", "test")[1]
        dataset.change(protocol="self")
        assert "'protocol' must be query or database, found \"self\"" in start("--stage", "test")[2]

    def test_a_published_row_of_another_one_is_not_shown(self, start, dataset):
        dataset.change(dataset="fcv")
        start("--stage", "pretrain", "--hashcode_size", 64, "--max_iter", 0, 0)
        out = start("--stage", "test", "--hashcode_size", 64)[1]
        assert "published WSCH: not shown, as there every database video queries; --protocol database" in out
        assert " 0.558" not in out
        assert json_lines("log/2.jsonl")[-2]["published"] == {}
        assert " 0.558" in start("--stage", "test", "--hashcode_size", 64, "--protocol", "database")[1]


class TestCuts:
    def test_are_a_setting(self, start, dataset):
        write_features(dataset.folder / "test.h5", dataset.features["test"][:60])
        scipy.io.savemat(dataset.folder / "test.mat", {"labels": dataset.labels["test"][:60]})
        status, _, err = start()
        assert status == 2
        assert "mAP@100 needs a database of 100 videos, found 60; set smaller 'ks'" in err
        status, out, _ = start("--ks", 5, 60)
        assert status == 0
        header = next(line for line in out.splitlines() if line.startswith("mAP@K"))
        assert header.split() == ["mAP@K", "@5", "@60"]
        assert set(json_lines("log/3.jsonl")[-2]["mAP"]) == {"5", "60"}

    @pytest.mark.parametrize("ks", [[], [0], [5, 5], [5.5], "5", [True]])
    def test_wrong_ones(self, start, dataset, ks):
        dataset.change(run=dataset.content["run"] | {"ks": ks})
        assert "'ks' must be whole numbers" in start()[2]


class TestContrast:
    def test_a_batch_of_one_video_has_none(self, start):
        for stage in ("pipeline", "train"):
            err = start("--stage", stage, "--batch_size", 1)[2]
            assert "'batch_size' must be 2 or more unless 'cfg.b' is 0, found 1: a single video" in err
        assert start("--stage", "pretrain", "--batch_size", 1)[0] == 0
        assert start("--stage", "train", "--batch_size", 1, "--cfg.b", 0)[0] == 0

    @pytest.mark.parametrize(("stage", "weight"), [("train", "--cfg.b"), ("conmh.train", "--conmh.a")])
    def test_a_last_batch_of_one_is_said(self, start, stage, weight):
        start("--stage", "pretrain")
        for said, options in ((1, ()), (0, (weight, 0)), (0, ("--batch_size", 18))):
            out = start("--stage", stage, "--batch_size", 19, *options)[1]
            assert out.count("the last batch of a pass holds one video") == said


def test_queries_without_anything_relevant_are_counted(start, dataset):
    start("--stage", "pretrain")
    said = "queries share no class with the database: each counts 0"
    assert said not in start("--stage", "test")[1]
    labels = dataset.labels["test"].copy()
    labels[labels[:, 1] == 1] = 0  # the class of two queries
    scipy.io.savemat(dataset.folder / "test.mat", {"labels": labels})
    assert f"2 of 6 {said}" in start("--stage", "test")[1]


def test_padding_is_said_once_a_run(start, dataset):
    for name in ("train", "test"):
        features = dataset.features[name].copy()
        features[:3, -2:] = 0
        write_features(dataset.folder / f"{name}.h5", features)
    out = start("--memory", "disk")[1]
    for name, count in (("train.h5", 2), ("test.h5", 1)):  # two training stages, one test
        assert (
            out.count(f"{name}: 3 videos end in all-zero frames, which the network sees as frames") == count
        )
    assert "/query.h5" not in out
