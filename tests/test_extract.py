"""From clips to a dataset: what is written, in which order, what is skipped, where a killed run goes on."""

import csv
import gc
import json
import os
import re
import shutil
import signal
import sys

import h5py
import numpy as np
import pytest
from clips import BITS, write_clip
from synthetic import ROOT, ended, forked, json_lines, need, ours, started

import tools.decoding
import tools.extract
from formats.dataset import load_config
from formats.labels import load_labels
from formats.video import choose
from tools import inspect
from tools.decoding import Clips, DecoderDied
from tools.listing import list_videos

need("av")
Image = need("PIL.Image")

# A backbone of the user's: the bars of a frame, ten grey values in [0, 1]. Its DIES_AT-th call kills the
# process (of several ranks, the second), and so does a frame with a number from 896 on. Its STOPS_AT-th call
# in the second rank has the launcher stop all.
BARS = """
import os, signal, time
import numpy as np
from torch import nn
from engine.device import STOP

class Bars(nn.Module):
    calls = 0

    def forward(self, x):
        Bars.calls += 1
        if os.environ.get("RANK", "1") == "1" and Bars.calls == int(os.environ.get("DIES_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("RANK") == "1" and Bars.calls == int(os.environ.get("STOPS_AT", 0)):
            os.kill(os.getppid(), signal.SIGTERM)
            while not STOP.number:
                time.sleep(0.01)
        return x[:, 0, 0] / 255

def prepare(image):
    bars = np.asarray(image.convert("L").resize((10, 2), 4))[:1][None].copy()
    if bars[0, 0, :3].min() > 128:
        os.kill(os.getpid(), signal.SIGKILL)
    return bars.repeat(500, 1)  # more than a pipe between processes holds

def bars():
    return Bars(), prepare

def huge(factor=1000):
    return nn.Sequential(Bars(), Times(factor)), prepare

class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = 255 * factor

    def forward(self, x):
        return x * self.factor

def nan():
    return huge(float("nan"))

def is_the_probe(image):
    return image.getpixel((0, 0)) == (127, 127, 127)

def picky():
    return Bars(), lambda image: prepare(image) if is_the_probe(image) else 1 / 0

def growing():
    return Bars(), lambda image: prepare(image)[:, : 500 if is_the_probe(image) else 2]
"""
N_FRAMES = 5
DEFAULTS = {"name": "x", "backbone": "barsbackbone:bars", "frames": N_FRAMES, "max_failures": 0.5}
CLASSES = ("10", "9;10", "")
SPLITS = ("train", "train", "test", "train", "query")


def kill_itself(_):
    """A ``prepare`` that a process finds by its name."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Twelve clips, a list of them, and four files that are none; clip i shows 40 i, 40 i + 1, ..."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "sub").mkdir()
    rows = [("file", "split", "class")]
    for number in range(12):
        name = f"sub/clip {number} é.mp4" if number % 3 else f"clip{number}.avi"
        write_clip(folder / name, range(40 * number, 40 * number + 3 + number), "mpeg4", qscale="2")
        rows.append((name, SPLITS[number % 5], CLASSES[number % 3]))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_bytes(b"no video" * 100)
    rows[3:3] = [("empty.mp4", "train", "10")]
    rows[7:7] = [("text.mp4", "query", "11")]
    with open(folder / "list.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture
def extract(start, clips, tmp_path, monkeypatch):
    """Extract the list with the bars as features; gives (status, stdout, stderr)."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # a backbone of the user's adds the working directory
    (tmp_path / "work" / "barsbackbone.py").write_text(BARS)

    def extract(**options):
        given = {"videos": clips / "list.csv", "num_workers": 0} | DEFAULTS | options
        return start("--stage", "tools.extract", *as_arguments(given))

    yield extract
    sys.modules.pop("barsbackbone", None)


def as_arguments(options):
    return [part for key, value in options.items()
            for part in (f"--{key}", *(value if isinstance(value, tuple) else (value,)))]  # fmt: skip


def listed(clips):
    with open(clips / "list.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def everything(name):
    """All files of a dataset, and its JSON, without its name."""
    folder = f"features/{name}"
    paths = [os.path.join(place, file) for place, _, files in os.walk(folder) for file in files]
    files = {os.path.relpath(path, folder): open(path, "rb").read() for path in paths}
    return files | {
        "JSON": open(f"Json/{name}.json").read().replace(f"/{name}/", "/").replace(f'"{name}"', "")
    }


def shown(features):
    """The numbers that frames show, of features (..., 10)."""
    return (features > 0.5) @ (1 << np.arange(BITS)[::-1])


def test_what_is_written(extract, clips):
    status, out, err = extract()
    assert (status, err) == (0, "")
    rows = [row for row in listed(clips) if row["file"] not in ("empty.mp4", "text.mp4")]
    numbers = {row["file"]: number for number, row in enumerate(rows)}
    for split in ("train", "test", "query"):
        mine = [row for row in rows if row["split"] == split]
        assert read_lines(f"{split}_names.txt") == [row["file"] for row in mine]
        with h5py.File(f"features/x/{split}_feats.h5") as file:
            features, recipe = file["feats"], json.loads(file.attrs["recipe"])
            assert (features.shape, features.dtype) == ((len(mine), N_FRAMES, BITS), np.float16)
            assert features.chunks is None
            found = shown(features[()])
        for row, frames in zip(mine, found.tolist(), strict=True):
            number = numbers[row["file"]]
            assert frames == [40 * number + each for each in choose(3 + number, N_FRAMES)]
    assert (recipe["backbone"], recipe["n_frames"]) == ("barsbackbone:bars", N_FRAMES)
    assert {"av", "torch"} <= recipe["versions"].keys()
    numbers = "8 to train on, 2 in the database (test), 2 queries"
    assert f"features/x: {numbers}; 5 frames of width 10, float16" in out
    assert "2 of 14 videos skipped: features/x/skipped.csv says why" in out
    assert "next: python run.py --data_set_config Json/x.json\n" in out


def test_a_name_with_a_space(extract):
    assert "next: python run.py --data_set_config 'Json/my set.json'\n" in extract(name="my set")[1]


def read_lines(name):
    return open(f"features/x/{name}", encoding="utf-8").read().splitlines()


def test_labels_have_a_column_a_class(extract, clips):
    extract()
    assert read_lines("classes.txt") == ["9", "10"]  # none of those that were skipped
    config = load_config("Json/x.json")
    for split in (config.train, config.test, config.query):
        mine = [
            row for row in listed(clips) if row["split"] == split.name and row["file"].startswith(("s", "c"))
        ]
        expected = [["9" in row["class"], "10" in row["class"]] for row in mine]
        assert np.array_equal(load_labels(config, split, [len(mine)])[0], expected)


def test_thumbnails_are_where_the_gallery_looks(extract, clips):
    extract()
    image = Image.open("features/x/thumbnails/sub/clip 5 é.mp4.jpg")
    assert (image.format, image.size) == ("JPEG", (160, 120))
    bars = np.asarray(image.convert("L").resize((10, 2), Image.Resampling.BOX))[0] / 255
    assert shown(bars) == 40 * 5 + choose(8, N_FRAMES)[N_FRAMES // 2]
    assert len(os.listdir("features/x/thumbnails")) == 5
    assert len(os.listdir("features/x/thumbnails/sub")) == 8


def test_what_is_skipped_has_a_reason(extract):
    extract()
    lines = read_lines("skipped.csv")
    assert lines[0] == "file,reason"
    assert [line.partition(",")[0] for line in lines[1:]] == ["empty.mp4", "text.mp4"]
    assert all(line.partition(",")[2] for line in lines[1:])


def test_the_pipelines_run_on_it(extract, start, clips, capsys):
    assert extract(backbone="lite0", frames=2)[0] == 0
    assert inspect.main(["Json/x.json"]) == 0
    assert "L = 2 frames of width D = 1280" in capsys.readouterr().out
    for stage in ("pipeline", "bth.pipeline", "conmh.pipeline"):
        epochs = [1] if stage == "conmh.pipeline" else [1, 1]
        status, out, err = start("--stage", stage, "--data_set_config", "Json/x.json", "--max_iter", *epochs)
        assert (status, err) == (0, "")
        assert "x, 64 bits, 2 queries, 2 videos" in out


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"batch_size": 3}])
def test_no_choice_of_speed_changes_a_file(extract, options):
    extract(name="x")
    assert extract(name="y", **options)[0] == 0
    assert everything("y") == everything("x")


def test_single_precision(extract, clips):
    extract(feature_type="float32")
    extract(name="y")
    with h5py.File("features/x/train_feats.h5") as single, h5py.File("features/y/train_feats.h5") as half:
        assert single["feats"].dtype == np.float32
        assert np.array_equal(single["feats"][()].astype(np.float16), half["feats"])


def test_folders_as_classes(extract, clips, tmp_path):
    for number, row in enumerate(listed(clips)):
        folder = tmp_path / "sorted" / ("jump", "run", ".")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clips / row["file"], folder)
    plain = extract(videos=tmp_path / "sorted", name="y")[1]
    assert "--classes folders would take its 2 folders (jump, run) as classes" in plain
    status, out, _ = extract(videos=tmp_path / "sorted", classes="folders")
    assert status == 0
    assert "drawn at random by 0.5 0.35 0.15, seed 3346; 2 classes, by folders: jump, run\n" in out
    assert out.endswith("next: python run.py --data_set_config Json/x.json\n")
    assert read_lines("classes.txt") == ["jump", "run"]
    config = load_config("Json/x.json")
    for split in (config.train, config.test, config.query):
        names = read_lines(f"{split.name}_names.txt")
        expected = [[name.startswith(each) for each in ("jump/", "run/")] for name in names]
        assert np.array_equal(load_labels(config, split, [len(names)])[0], expected)
    status, _, err = extract(classes="folders", name="z")
    assert (status, err.count("\n")) == (2, 1)
    assert "list.csv: --classes folders is for a folder of videos" in err


def test_without_classes_and_splits(extract, clips, start, tmp_path):
    lines = ["file", *(str(clips / row["file"]) for row in listed(clips))]
    (tmp_path / "plain.csv").write_text("\n".join(lines))
    status, out, _ = extract(videos=tmp_path / "plain.csv", split=(0.4, 0.3, 0.3), seed=5)
    assert status == 0
    assert "drawn at random by 0.4 0.3 0.3, seed 5" in out
    assert "no classes: what is trained on this can encode, search and show; a test would need classes" in out
    assert "next: python run.py --data_set_config Json/x.json --stage pretrain\nthen the same with" in out
    assert not [name for name in os.listdir("features/x") if "label" in name or "class" in name]
    options = ("--data_set_config", "Json/x.json")
    assert inspect.main(["Json/x.json"]) == 0
    assert start("--stage", "pretrain", *options, "--max_iter", 1, 1)[0] == 0
    assert start("--stage", "tools.encode", *options)[0] == 0
    status, _, err = start("--stage", "test", *options)
    assert (status, err.count("\n")) == (2, 1)
    assert "error: Json/x.json: 'test_label' is empty: a test needs labels" in err


class TestGoesOn:
    @pytest.fixture
    def calm(self, extract):
        """What an extraction leaves that nothing disturbs, put away."""
        extract()
        files = everything("x")
        os.rename("features/x", "features/calm")
        os.remove("Json/x.json")
        return files

    @pytest.mark.parametrize("dies_at", [4, 9])
    def test_sigkill_within_a_batch(self, extract, start, spawn, clips, calm, monkeypatch, dies_at):
        """While a process decodes ahead; then a power cut leaves halves, or takes features."""
        monkeypatch.setenv("DIES_AT", str(1 + dies_at))  # the first call is the probe
        options = {"stage": "tools.extract", "videos": clips / "list.csv"} | DEFAULTS
        process = spawn(*as_arguments(options))
        process.communicate(timeout=30)  # its decoder ends, too
        assert process.returncode == -signal.SIGKILL
        monkeypatch.delenv("DIES_AT")
        n_batches = open("features/x/extract.part.jsonl").read().count("\n") - 1
        assert n_batches == (dies_at == 9)
        if dies_at == 9:
            os.truncate("features/x/extract.part", 7)
        with open("features/x/extract.part.jsonl", "a") as file:
            file.write('[0, "no')
        status, _, err = extract()
        assert status == 2
        assert "features/x: there already: delete it, set another 'name', or --resume its extraction" in err
        assert start("--resume")[0] == 0
        assert everything("x") == calm

    @pytest.mark.parametrize(
        "function",
        ["write_skipped", "write_features", "write_names_and_labels", "write_whole", "Work.remove"],
    )
    @pytest.mark.parametrize("behind", [False, True])
    def test_killed_while_it_ends(self, extract, start, calm, monkeypatch, function, behind):
        place, _, name = f"tools.extract.{function}".rpartition(".")
        owner = tools.extract.Work if place.endswith("Work") else tools.extract
        done = getattr(owner, name)

        def killed(*arguments):
            if name == "write_whole" and arguments[0].suffix != ".json":
                return done(*arguments)
            if behind:
                done(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            assert extract()[0] == 130
        status, out, _ = start("--resume")
        assert status == 0
        assert ("Json/x.json: there already" in out) == (name == "remove" and behind)
        assert everything("x") == calm
        assert start("--resume")[2] == "error: --resume: no unfinished run in log\n"

    def test_killed_between_two_steps_of_cleaning_up(self, extract, start, calm, monkeypatch):
        def remove(work):
            work.outcomes_path.unlink()
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(tools.extract.Work, "remove", remove)
            assert extract()[0] == 130
        assert start("--resume")[0] == 0
        assert everything("x") == calm

    def test_what_is_done_is_not_decoded_again(self, extract, start, monkeypatch):
        seen, read = [], tools.decoding.read_frames

        def reading(path, *others):
            seen.append(path.name)
            if len(seen) == 6:
                raise KeyboardInterrupt
            return read(path, *others)

        monkeypatch.setattr(tools.decoding, "read_frames", reading)
        assert extract()[0] == 130
        assert start("--resume")[0] == 0
        assert len(seen) == 6 + 14 - 4
        assert seen[4:6] == seen[6:8]

    def test_not_with_another_list(self, extract, start, clips, tmp_path, monkeypatch):
        path = tmp_path / "list.csv"
        rows = [f"{clips / row['file']},{row['split']}" for row in listed(clips)]
        path.write_text("\n".join(["file,split", *rows]))
        with monkeypatch.context() as patch:
            patch.setattr(tools.extract, "write_features", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                extract(videos=path)
        path.write_text("\n".join(["file,split", *rows[1:]]))
        assert "features/x/extract.part.jsonl: was begun with other videos" in start("--resume")[2]

    def test_a_signal_to_all_processes_is_no_fault_of_a_video(self, extract, start, calm, monkeypatch):
        read = tools.decoding.read_frames

        def signalled(path, *others):
            if path.name == "clip0.avi":  # the first: it is waited for
                for process in (os.getppid(), os.getpid()):
                    os.kill(process, signal.SIGTERM)
            return read(path, *others)

        with monkeypatch.context() as patch:
            patch.setattr(tools.decoding, "read_frames", signalled)
            assert extract(num_workers=1, batch_size=1)[0] == 128 + signal.SIGTERM
        gc.collect()  # frames that an error holds: the run's lock goes with them, else with the process
        assert start("--resume")[0] == 0
        assert everything("x") == calm


JOBS = """
import json, sys
from engine import ranks
from engine.launch import launch
from pipeline import train_model
from run import settings

with ranks.joined():
    for arguments in json.loads(sys.argv[1]):
        print("status", launch(train_model, settings, arguments), file=sys.stderr)
"""


class TestRanks:
    def test_any_number_leaves_the_same_bytes_and_errors(self, clips, tmp_path, monkeypatch):
        """Seven and eight batches: in the last round, some ranks have none."""
        write_clip(tmp_path / "bad.mp4", [900] * 3, "mpeg4")
        rows = [f"{clips / row['file']},{row['split']},{row['class']}" for row in listed(clips)]
        rows[5:5] = [f"{tmp_path / 'bad.mp4'},train,"]
        nothing = [f"{clips / name},train," for name in ("none.mp4", "neither.mp4")]  # a first batch of these
        for name, lines in (("crash", rows), ("late", [*nothing, *rows])):
            (tmp_path / f"{name}.csv").write_text("\n".join(["file,split,class", *lines]))
        (tmp_path / "jobs.py").write_text(JOBS)

        def job(**options):
            given = {"stage": "tools.extract", "batch_size": 2, "device": "cpu", **DEFAULTS, **options}
            return [str(each) for each in as_arguments(given)]

        jobs = [
            job(videos=tmp_path / "crash.csv"),
            job(videos=clips / "list.csv", name="y", max_failures=0.1),
            ["--resume", "--max_failures", "0.2", "--device", "cpu"],
            job(videos=tmp_path / "late.csv", name="z", backbone="barsbackbone:huge"),
            job(videos=tmp_path / "late.csv", name="z2", backbone="barsbackbone:growing"),
        ]
        found = {}
        for n in (1, 3):
            (folder := tmp_path / str(n)).mkdir()
            (folder / "barsbackbone.py").write_text(BARS)
            monkeypatch.chdir(folder)
            _, _, err = forked(n, tmp_path / "jobs.py", json.dumps(jobs), cwd=folder)
            said = [line for line in err.splitlines() if line.startswith(("error:", "status"))]
            found[n] = said, everything("x"), everything("y")
        said, files, _ = found[1]
        assert [line[-1] for line in said if line.startswith("status")] == ["0", "2", "0", "2", "2"]
        assert "bad.mp4,its decoder crashed" in files["skipped.csv"].decode()
        assert found[3] == found[1]

    @pytest.fixture
    def calm(self, extract):
        """What one process leaves, put away."""
        extract()
        files = everything("x")
        shutil.move("features/x", "features/calm")
        os.remove("Json/x.json")
        return files

    @pytest.fixture
    def torchrun(self, clips, dataset, tmp_path):
        """Extract the list, or resume, with n ranks; gives (status, stdout, stderr)."""

        def torchrun(n, *arguments):
            options = {"stage": "tools.extract", "videos": clips / "list.csv", "batch_size": 1} | DEFAULTS
            form = ["--data_set_config", dataset.path, "--device", "cpu"]
            return ended(
                started(
                    n, ROOT / "run.py", *form, *(arguments or as_arguments(options)), cwd=tmp_path / "work"
                )
            )

        return torchrun

    def test_stopped_and_killed_where_three_and_one_go_on(self, torchrun, start, calm, monkeypatch):
        """Two ranks are stopped by SIGTERM; three go on in the middle of a round, one of which is killed."""
        monkeypatch.setenv("STOPS_AT", "4")  # the first call is the probe, then come two a clip
        status, _, err = torchrun(2)
        assert status != 0
        assert ours(err) == [f"stopped; to go on with it: python {ROOT / 'run.py'} --resume 2"]
        monkeypatch.delenv("STOPS_AT")
        with open("features/x/extract.part.jsonl", "rb+") as file:
            lines = file.readlines()
            file.truncate(sum(map(len, lines[:-1])))
        assert 0 < len(lines) - 2 < 12
        assert len(lines) % 2

        monkeypatch.setenv("DIES_AT", "4")
        status, _, err = torchrun(3, "--resume")
        assert status != 0
        (line,) = ours(err)
        assert re.match("error: rank [02] of 3 has lost another one [(]", line)
        assert line.endswith(f"to go on with it: python {ROOT / 'run.py'} --resume 2")
        monkeypatch.delenv("DIES_AT")
        assert len(lines) - 2 < len(json_lines("features/x/extract.part.jsonl")[1:]) < 14
        assert start("--resume")[0] == 0
        assert everything("x") == calm


class TestFailures:
    def test_a_decoder_that_crashes_costs_its_video_alone(self, extract, clips, tmp_path):
        write_clip(tmp_path / "bad.mp4", [900] * 3, "mpeg4")
        rows = [f"{clips / row['file']},{row['split']}" for row in listed(clips)]
        rows[5:5] = [f"{tmp_path / 'bad.mp4'},train"]
        (tmp_path / "list.csv").write_text("\n".join(["file,split", *rows]))
        assert extract(videos=tmp_path / "list.csv", num_workers=2, batch_size=1)[0] == 0
        assert f"{tmp_path / 'bad.mp4'},its decoder crashed" in read_lines("skipped.csv")
        assert len(read_lines("skipped.csv")) == 1 + 3
        assert len(read_lines("train_names.txt")) == 8

    def test_a_crash_is_noticed_where_processes_are_not_forked(self, clips, monkeypatch):
        monkeypatch.setattr(tools.decoding, "START_METHOD", "spawn")
        videos = list_videos(clips / "list.csv", (), 0)[0]
        decoded = Clips(videos[:1], N_FRAMES, kill_itself, n_processes=1)
        with pytest.raises(DecoderDied) as death:
            list(decoded.batches([range(1)]))
        assert death.value.videos == {0}

    def test_a_decoder_that_dies_disturbs_only_who_waits_for_it(self, clips):
        """Else the signal would raise in the middle of what ranks exchange, and leave them out of step."""
        videos = list_videos(clips / "list.csv", (), 0)[0]
        decoded = Clips(videos, N_FRAMES, np.asarray, n_processes=1)
        batches = decoded.batches([range(1), range(1, 2)])
        next(batches)
        pid = int(decoded.under_way[0, 0])
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        batches.close()

    def test_too_many(self, extract, start):
        status, _, err = extract(max_failures=0.1, batch_size=2)
        assert status == 2
        assert (
            "skipped.csv: 2 of the first 14 videos cannot be used, 'max_failures' is 0.1 of 14; a larger"
            in err
        )
        assert sorted(os.listdir("features/x")) == [
            "extract.part",
            "extract.part.jsonl",
            "skipped.csv",
            "thumbnails",
        ]
        assert not os.path.exists("Json/x.json")
        assert start("--resume")[2] == err
        assert start("--resume", "--max_failures", 0.2)[0] == 0
        assert os.path.exists("Json/x.json")

    def test_all_of_a_split(self, extract, clips, tmp_path):
        names = [row["file"] for row in listed(clips) if row["file"][0] in "cs"]
        rows = [f"{clips / names[0]},train", f"{clips / names[1]},test", f"{clips}/empty.mp4,query"]
        (tmp_path / "list.csv").write_text("\n".join(["file,split", *rows]))
        err = extract(videos=tmp_path / "list.csv")[2]
        assert err == "error: features/x/skipped.csv: no video of query could be used\n"

    def test_a_file_that_is_not_there(self, extract, clips, tmp_path):
        names = [row["file"] for row in listed(clips) if row["file"][0] in "cs"]
        rows = [
            f"{clips / name},{split}" for name, split in zip(names, ("train", "test", "query"), strict=False)
        ]
        (tmp_path / "list.csv").write_text("\n".join(["file,split", "none.mp4,train", *rows]))
        assert extract(videos=tmp_path / "list.csv")[0] == 0
        assert read_lines("skipped.csv")[1] == "none.mp4,cannot be opened: No such file or directory"

    def test_features_that_float16_cannot_hold(self, extract):
        err = extract(backbone="barsbackbone:huge")[2]
        assert "its features are not all finite numbers; float32 holds larger ones" in err
        assert extract(name="y", backbone="barsbackbone:huge", feature_type="float32")[0] == 0

    def test_features_that_are_no_numbers(self, extract):
        assert extract(backbone="barsbackbone:nan")[2].endswith("its features are not all finite numbers\n")

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("picky", "fails on a frame: division by zero"),
            ("growing", "makes (1, 2, 10) of a frame of (64, 48), of others (1, 500, 10)"),
        ],
    )
    def test_a_backbone_that_fails_in_another_process(self, extract, clips, name, reason):
        status, _, err = extract(backbone=f"barsbackbone:{name}", num_workers=1)
        assert status == 2
        assert err == f"error: {clips}/clip0.avi: backbone barsbackbone:{name}: {reason}\n"

    @pytest.mark.parametrize("path", ["extract.part", "extract.part.jsonl"])
    def test_a_full_disk(self, extract, start, monkeypatch, path):
        def full(number):
            if os.readlink(f"/proc/self/fd/{number}").endswith(f"/{path}"):
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            assert extract()[2] == f"error: features/x/{path}: cannot be written: No space left on device\n"
        assert start("--resume")[0] == 0


class TestRefusals:
    def test_a_dataset_that_is_there(self, extract):
        os.makedirs("Json")
        with open("Json/x.json", "w") as file:
            file.write("{}")
        assert "Json/x.json: there already: delete it, set another 'name'" in extract()[2]
        assert open("Json/x.json").read() == "{}"
        assert not os.path.exists("features")
        assert not os.path.exists("log")

    def test_where_json_cannot_be_written(self, extract):
        open("Json", "w").close()
        assert extract()[0] == 0
        assert load_config("features/x/x.json").dataset == "x"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"name": "a/b"}, "'name' must be a file name, found \"a/b\""),
            ({"split": (0.5, 0.5, 0.5)}, "'split' must be numbers above 0, three that sum to 1, found"),
            ({"split": (1, 0, 0)}, "'split' must be numbers above 0, three"),
            ({"split": ("a", "b", "c")}, "three that sum to 1, found [\"a\""),
            ({"frames": 1}, "'frames' must be 2 or more"),
            ({"backbone": "nope"}, "'backbone' must be one of lite0"),
            ({"videos": "none.csv"}, "none.csv: cannot be read: No such file or directory"),
            ({"weight_path": "x"}, "'weight_path' must be None"),
        ],
    )  # fmt: skip
    def test_settings(self, extract, options, message):
        status, _, err = extract(**options)
        assert status == 2
        assert message in err
        assert not os.path.exists("features")

    def test_videos_and_name_must_be_given(self, start):
        for options, missing in (
            ((), "--videos FOLDER --name NAME"),
            (("--videos", "clips"), "--name NAME"),
        ):
            err = start("--stage", "tools.extract", *options)[2]
            assert err == f"error: {missing} must be given\n"

    def test_without_pyav(self, extract, monkeypatch):
        monkeypatch.setitem(sys.modules, "av", None)
        assert extract()[2] == "error: this needs PyAV: pip install -r requirements-video.txt\n"
