"""What goes wrong outside: bad input, full disks, signals, kills. One line, status 2, nothing lost."""

import json
import os
import pickle
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from synthetic import N_CLASSES, N_DATABASE, N_FRAMES, ROOT, WIDTH, json_lines, write_features

import engine.checkpoint
import engine.loop
from formats.files import BadInput, write_whole
from formats.weights import read_checkpoint


def snapshot(*folders: Path) -> dict:
    """Every file below some folders with its content."""
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def set_features(name, **change):
    def apply(dataset):
        features = dataset.features[name]
        write_features(dataset.folder / f"{name}.h5", change["to"](features.copy()))

    return apply


def with_value(features, place, value):
    features[place] = value
    return features


def set_labels(name, array, variable="labels"):
    return lambda dataset: scipy.io.savemat(dataset.folder / f"{name}.mat", {variable: array})


def write(name, content):
    return lambda dataset: (dataset.folder / name).write_bytes(content)


def truncate(name, keep):
    def apply(dataset):
        path = dataset.folder / name
        os.truncate(path, int(path.stat().st_size * keep))

    return apply


def no_feats(dataset):
    with h5py.File(dataset.folder / "train.h5", "w") as file:
        file["features"] = dataset.features["train"]


def empty_feats(dataset):
    with h5py.File(dataset.folder / "train.h5", "w") as file:
        file["feats"] = h5py.Empty("f4")


def unwritten_feats(dataset):
    with h5py.File(dataset.folder / "train.h5", "w") as file:
        file.create_dataset("feats", dataset.features["train"].shape, "f4", chunks=True)


def virtual_feats(dataset):
    (dataset.folder / "train.h5").rename(dataset.folder / "source.h5")
    layout = h5py.VirtualLayout(dataset.features["train"].shape, "f4")
    layout[:] = h5py.VirtualSource(dataset.folder / "source.h5", "feats", layout.shape)
    with h5py.File(dataset.folder / "train.h5", "w") as file:
        file.create_virtual_dataset("feats", layout)


def per_video(dataset):
    with h5py.File(dataset.folder / "train.h5", "w") as file:
        for name, video in zip("abcdefghijklmnopqrst", dataset.features["train"], strict=True):
            file[name] = video


def mixed_files(dataset):
    write_features(dataset.folder / "half.h5", dataset.features["train"].astype(np.float16))
    dataset.change(train=["train.h5", "half.h5"])


def set_json(**values):
    return lambda dataset: dataset.change(**values)


def remove_key(key):
    def apply(dataset):
        del dataset.content[key]
        dataset.change()

    return apply


def set_run(**values):
    return lambda dataset: dataset.change(run=dataset.content["run"] | values)


def set_cfg(**values):
    return lambda dataset: set_run(cfg=dataset.content["run"]["cfg"] | values)(dataset)


def json_text(old, new):
    return lambda dataset: dataset.path.write_text(dataset.path.read_text().replace(old, new, 1))


def small_database(dataset):
    write_features(dataset.folder / "test.h5", dataset.features["test"][:99])
    scipy.io.savemat(dataset.folder / "test.mat", {"labels": dataset.labels["test"][:99]})


def nothing(dataset):
    pass


ONES = np.ones((N_DATABASE, N_CLASSES), np.uint8)
CONMH = ["--stage", "conmh.pipeline"]
# (what is wrong, how it comes about, options, what the one line says)
BAD_INPUTS = [
    (
        "feature file missing",
        lambda d: (d.folder / "train.h5").unlink(),
        [],
        "train.h5: no such feature file",
    ),
    (
        "feature file missing, relative",
        set_json(root="of mine"),
        [],
        "work; paths in a dataset JSON start from the working folder or its 'root'",
    ),
    ("not HDF5", write("train.h5", b"not an HDF5 file at all"), [], "train.h5: not a readable HDF5 file"),
    (
        "truncated HDF5",
        truncate("train.h5", 0.6),
        [],
        "train.h5: not a readable HDF5 file (damaged or truncated?)",
    ),
    ("empty file", write("test.h5", b""), [], "test.h5: not a readable HDF5 file"),
    (
        "a folder",
        lambda d: ((d.folder / "query.h5").unlink(), (d.folder / "query.h5").mkdir()),
        [],
        "query.h5: ",
    ),
    ("no feats", no_feats, [], "train.h5: no dataset 'feats', found ['features']"),
    ("wrong rank", set_features("train", to=lambda x: x[0]), [], f"has shape ({N_FRAMES}, {WIDTH})"),
    (
        "wrong width",
        set_json(hidden_size=WIDTH + 1),
        [],
        f"expected (N, {N_FRAMES}, {WIDTH + 1})",
    ),
    ("wrong frame count", set_json(max_frames=5), [], f"expected (N, 5, {WIDTH})"),
    ("no videos", set_features("test", to=lambda x: x[:0]), [], "test.h5: 'feats' holds no video"),
    (
        "integers",
        set_features("train", to=lambda x: x.astype(np.int32)),
        [],
        "is int32, expected float16, float32",
    ),
    ("files disagree", mixed_files, [], "half.h5: float16, but"),
    (
        "NaN",
        set_features("train", to=lambda x: with_value(x, (3, 2, 1), np.nan)),
        ["--memory", "ram"],
        "train.h5: video 3, frame 2: not finite",
    ),
    (
        "NaN in a query",
        set_features("query", to=lambda x: with_value(x, (1, 0, 2), np.nan)),
        [],
        "query.h5: video 1, frame 0: not finite",
    ),
    ("label file missing", lambda d: (d.folder / "test.mat").unlink(), [], "test.mat: no such label file"),
    (
        "not a MAT file",
        write("test.mat", b"not a MAT file at all, but long enough " * 9),
        [],
        "test.mat: not a readable MAT",
    ),
    ("truncated MAT", truncate("query.mat", 0.5), [], "query.mat: not a readable MAT file"),
    (
        "label variable missing",
        lambda d: (set_labels("test", ONES, "tags")(d), d.change(label_variable="labels")),
        [],
        "no variable 'labels', found ['tags']",
    ),
    ("label count", set_labels("test", ONES[:-1]), [], f"has {N_DATABASE - 1} rows, but {N_DATABASE} videos"),
    ("label columns", set_labels("test", np.ones((N_DATABASE, 3))), [], "has 3 columns, but num_class is 4"),
    ("not binary", set_labels("test", 3 * ONES), [], "must hold 0 and 1 only, found 3"),
    ("no positive label", set_labels("query", np.zeros((6, N_CLASSES))), [], "has no positive label at all"),
    ("labels are text", set_labels("test", "dog"), [], "'labels' is not a numeric array"),
    (
        "JSON missing",
        lambda d: d.path.unlink(),
        [],
        "synthetic.json: no such dataset JSON\n",
    ),
    (
        "JSON missing, and more",
        lambda d: d.path.unlink(),
        ["--seed", "-1"],
        "synthetic.json: no such dataset JSON; option 'seed' must be 0 or more, found -1\n",
    ),
    ("JSON syntax", json_text("{", "{,"), [], "synthetic.json: line 1, column 2: "),
    ("JSON is a list", lambda d: d.path.write_text("[]"), [], "expected a JSON object, found list"),
    ("JSON key twice", json_text("{", '{"num_class": 4, '), [], "key 'num_class' stands there twice"),
    ("unknown key", set_json(max_frame=3), [], "unknown key 'max_frame' (did you mean 'max_frames'?)"),
    ("missing key", remove_key("num_class"), [], "key 'num_class' is missing"),
    ("wrong type", set_json(num_class="4"), [], "'num_class' must be a positive integer, found \"4\""),
    (
        "unknown run key",
        set_run(learning_rate=1),
        [],
        "in 'run': unknown key 'learning_rate' (did you mean 'lr'?)",
    ),
    ("unknown cfg key", set_cfg(n_cluster=1), [], "did you mean 'cfg.n_clusters'?"),
    ("p is 1", set_cfg(p1=1.0), [], "'cfg.p1' must be 0 <= p1 < 1, found 1.0"),
    ("nothing hidden", set_cfg(p2=0.1), [], "'cfg.p2' = 0.1 hides 0 of 6 frames"),
    ("hidden_size", set_run(hidden_size=100), [], "must be a multiple of 64 (the encoder's width"),
    ("decoder_size", set_run(decoder_size=33), [], "'decoder_size' must be a multiple of 4, found 33"),
    ("small database", small_database, [], "mAP@100 needs a database of 100 videos, found 99"),
    (
        "too many centers",
        nothing,
        ["--cfg.n_clusters", "41"],
        "'cfg.n_clusters' is 41, more than the 40 codes of both views of the 20 training videos of ",
    ),
    ("how to set", nothing, ["--cfg.n_clusters", "41"], "; set cfg.n_clusters, or 'n_clusters' in 'cfg' of "),
    ("dataset is a list", set_json(dataset=["a"]), [], "'dataset' must be a non-empty string"),
    (
        "labels are 0",
        set_json(train_label=0),
        [],
        "'train_label' must be a file name or a list of file names",
    ),
    (
        "a file twice",
        set_json(test=["test.h5"] * 2, test_label=["test.mat"] * 2),
        [],
        "file names, each once",
    ),
    ("a maze of brackets", lambda d: d.path.write_text("[" * 10**5), [], "synthetic.json: cannot be read"),
    ("5,000 digits", json_text("{", '{"x": ' + "1" * 5000 + ", "), [], "synthetic.json: cannot be read"),
    ("no finite label", set_labels("test", np.full(N_DATABASE, np.nan)), [], "class indices must be"),
    (
        "beyond float32",
        set_features("train", to=lambda x: 1e300 * x.astype(float)),
        ["--memory", "ram"],
        "not finite",
    ),
    ("an empty dataspace", empty_feats, [], "'feats' has shape None"),
    ("never written", unwritten_feats, [], "'feats' is incomplete: 0 of 1 chunks were written"),
    ("virtual", virtual_feats, [], "'feats' holds no data of its own"),
    ("flat", set_features("train", to=lambda x: x.reshape(len(x), -1)), [], "reshape it to (-1, 6, 24)"),
    ("one dataset per video", per_video, [], "'c', 'd', 'e'] and 15 more: if it has another name"),
    (
        "20,000 keys",
        set_json(**{f"key {n}": n for n in range(20_000)}),
        [],
        "'key 4'; 19995 more unknown keys",
    ),
    ("label variables", set_json(label_variable={"tests": "x"}), [], "'label_variable' must be the variable"),
    ("feature key", set_json(feature_key="rgb"), [], "no dataset 'rgb', found ['feats']: if it has another"),
    (
        "both blocks",
        set_json(run={"lr": 0}, bth={"n_anchor": 9}, num_class=0),
        [],
        "did you mean 'n_anchors'?",
    ),
    (
        "unknown conmh key",
        set_json(conmh={"n_head": 4}),
        [],
        "in 'conmh': unknown key 'n_head' (did you mean 'n_heads'?)",
    ),
    ("two numbers of epochs", nothing, [*CONMH, "--max_iter", "1", "2"], "unexpected argument '2'"),
    ("two in the JSON", set_json(conmh={"max_iter": [1, 2]}), CONMH, "'max_iter' must be a whole number"),
    ("an odd width", nothing, [*CONMH, "--hidden_size", "15"], "'hidden_size' must be an even number"),
    ("more heads than columns", nothing, [*CONMH, "--conmh.n_heads", "17"], "at least 'conmh.n_heads' = 17"),
    ("nothing hidden by ConMH", nothing, [*CONMH, "--conmh.p", "0.1"], "'conmh.p' = 0.1 hides 0 of 6 frames"),
    ("a batch without negatives", nothing, [*CONMH, "--batch_size", "1"], "'batch_size' must be 2 or more"),
    (
        "features missing for ConMH",
        lambda d: (d.folder / "train.h5").unlink(),
        CONMH,
        "train.h5: no such feature file",
    ),
    (
        "NaN for ConMH",
        set_features("train", to=lambda x: with_value(x, (3, 2, 1), np.nan)),
        [*CONMH, "--memory", "ram"],
        "train.h5: video 3, frame 2: not finite",
    ),
    ("no network of ConMH", nothing, ["--stage", "conmh.test"], "no finished checkpoint of conmh.train that"),
    ("an absurd width", nothing, ["--hidden_size", "64000000"], "'hidden_size' must be a multiple of 64"),
    ("an absurd number", nothing, ["--lr", "1" + "0" * 400], "'lr' must be a number, above 0"),
    ("a NUL byte", nothing, ["--result_log_dir", "a\0b"], "'result_log_dir' must be a text"),
    ("a long name", nothing, ["--weight_path", "x" * 5000, "--stage", "test"], "File name too long"),
    ("too many values", nothing, ["--max_iter", "1", "2", "3"], "unexpected argument '3'"),
    (
        "unknown option",
        nothing,
        ["--learning_rate", "1"],
        "unknown key '--learning_rate' (did you mean '--lr'?)",
    ),
    (
        "option of another system",
        nothing,
        ["--stage", "bth.train", "--cfg.a", "1"],
        "unknown key '--cfg.a' (the settings of BTH: python run.py --stage bth.pipeline --help)",
    ),
    ("option without value", nothing, ["--lr"], "argument --lr: expected one argument"),
    ("option out of range", nothing, ["--batch_size", "0"], "'batch_size' must be 1 or more, found 0"),
    ("unknown stage", nothing, ["--stage", "trian"], "'stage' must be one of pipeline"),
    *(
        ("like a stage", nothing, ["--stage", word], f"found \"{word}\" (did you mean '{stage}'?)\n")
        for word, stage in (("tools.extrac", "tools.extract"), ("encode", "tools.encode"), ("tests", "test"))
    ),
    ("two problems", set_run(lr=-1), ["--seed", "-1"], "option 'seed' must be 0 or more, found -1; "),
    ("weight_path in the pipeline", nothing, ["--weight_path", "x.pth"], "'weight_path' must be None"),
    ("no checkpoint", nothing, ["--stage", "test", "--weight_path", "x.pth"], "x.pth: no such checkpoint"),
    (
        "none that fits",
        nothing,
        ["--stage", "train"],
        "weight: no finished checkpoint of pretrain that fits; python run.py --stage pretrain",
    ),
    ("no such run", nothing, ["--resume", "7"], "--resume 7: run 7 does not exist"),
    ("nothing to resume", nothing, ["--resume"], "--resume: no unfinished run in log"),
]


@pytest.mark.parametrize(
    ("cause", "options", "message"), [row[1:] for row in BAD_INPUTS], ids=[row[0] for row in BAD_INPUTS]
)
def test_bad_input(start, dataset, tmp_path, cause, options, message):
    cause(dataset)
    before = snapshot(tmp_path)
    status, out, err = start(*options)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert snapshot(tmp_path) == before


def test_there_are_many_of_them():
    assert len({row[0] for row in BAD_INPUTS}) >= 40


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there(start):
    status, _, err = start("--device", "cuda")
    assert status == 2
    assert "'device' is cuda, but this machine has none" in err


class TestCheckpoints:
    @pytest.fixture
    def pretrained(self, start, tmp_path):
        assert start("--stage", "pretrain")[0] == 0
        return tmp_path / "work/weight/1_16.pth"

    @pytest.mark.parametrize(
        ("stage", "options", "message"),
        [
            ("train", ["--hashcode_size", 32], "its hashcode_size is 16, the settings say 32"),
            ("train", ["--hidden_size", 128], "its hidden_size is 64, the settings say 128"),
            ("test", ["--decoder_size", 64], "its decoder_size is 32, the settings say 64"),
            ("bth.test", [], "a checkpoint of stage pretrain, expected one of"),
            ("conmh.test", [], "a checkpoint of stage pretrain, expected one of conmh.train"),
        ],
    )
    def test_what_contradicts_the_settings_is_named(self, start, pretrained, stage, options, message):
        status, _, err = start("--stage", stage, "--weight_path", pretrained, *options)
        assert status == 2
        assert message in err

    def test_stage_and_width(self, start, dataset, pretrained, tmp_path):
        start("--stage", "train")
        trained = tmp_path / "work/weight/2_16.pth"
        assert (
            "a checkpoint of stage train, expected one of pretrain"
            in start("--stage", "train", "--weight_path", trained)[2]
        )
        for name in ("train", "test", "query"):
            write_features(dataset.folder / f"{name}.h5", dataset.features[name][..., :20])
        dataset.change(hidden_size=20)
        assert "its features are 24 wide, those of" in start("--stage", "test")[2]

    def test_centers_are_no_part_of_a_code(self, start):
        """A network trained with another number than the JSON says was passed over for its pre-training."""
        start("--cfg.n_clusters", 6)
        assert "2_16.pth: train on synthetic" in start("--stage", "test")[1]

    def test_a_folder_means_its_newest_that_fits(self, start, pretrained):
        start("--stage", "pretrain", "--hashcode_size", 32)
        _, out, _ = start("--stage", "train", "--weight_path", pretrained.parent)
        assert "starts from" in out
        assert "1_16.pth" in out

    @pytest.mark.parametrize("damage", ["truncated", "text", "foreign", "renamed", "moments"])
    def test_a_damaged_one(self, start, pretrained, damage):
        content = torch.load(pretrained, weights_only=True)
        if damage == "truncated":
            os.truncate(pretrained, pretrained.stat().st_size // 2)
        elif damage == "text":
            pretrained.write_text("these are not weights")
        elif damage == "foreign":
            torch.save({"layer.weight": torch.zeros(3)}, pretrained)
        elif damage == "renamed":
            content["model"]["encoder.extra"] = content["model"].pop("encoder.input_proj.weight")
            torch.save(content, pretrained)
        elif damage == "moments":
            content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
            torch.save(content, pretrained)
        status, _, err = start("--stage", "train", "--weight_path", pretrained)
        assert status == 2
        assert str(pretrained) in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("dataset", 5),
            ("inputs", 5),
            ("inputs", {"features": 5}),
            ("settings", {"seed": 1}),
            ("sizes", None),
            ("optimizer", 5),
        ],
    )
    def test_one_that_lacks_what_is_read_of_it(self, start, pretrained, key, value):
        torch.save(torch.load(pretrained, weights_only=True) | {key: value}, pretrained)
        for options in ((), ("--weight_path", pretrained)):
            status, _, err = start("--stage", "test", *options)
            assert status == 2
            assert f"1_16.pth: not a checkpoint of this package: its '{key}' is missing or damaged" in err

    def test_sizes_that_the_settings_do_not_know_are_passed_over(self, start, pretrained):
        content = torch.load(pretrained, weights_only=True)
        torch.save(content | {"sizes": content["sizes"] | {"depth": 3}}, pretrained)
        assert start("--stage", "test")[0] == 0

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state[0].update(exp_avg=torch.zeros(1).expand(24)), "found a view of fewer"),
            (lambda state: state[0].update(exp_avg_sq=-torch.ones(24)), "exp_avg_sq is not Adam's"),
            (lambda state: state[0].update(exp_avg=torch.zeros(23)), "exp_avg is not Adam's"),
            (lambda state: state[0].update(step=torch.tensor([1.0, 2.0])), "step is not Adam's"),
            (lambda state: state[0].update(exp_avg=torch.full((24,), torch.nan)), "expected finite values"),
            (lambda state: state[0].pop("exp_avg"), "exp_avg: expected a tensor, found NoneType"),
            (lambda state: state.pop(3), "its optimizer state is not Adam's for these 34 weights"),
        ],
    )
    def test_moments_that_are_not_adams(self, start, pretrained, change, message):
        content = torch.load(pretrained, weights_only=True)
        change(content["optimizer"]["state"])
        torch.save(content, pretrained)
        status, _, err = start("--stage", "train", "--weight_path", pretrained)
        assert status == 2
        assert message in err

    def test_moments_in_other_strides_train_alike(self, start, pretrained, tmp_path):
        content = torch.load(pretrained, weights_only=True)
        for state in content["optimizer"]["state"].values():
            if state["exp_avg"].ndim == 2:
                state["exp_avg"] = state["exp_avg"].T.contiguous().T
        torch.save(content, tmp_path / "strides.pth")
        start("--stage", "train", "--weight_path", pretrained)
        start("--stage", "train", "--weight_path", tmp_path / "strides.pth")
        one, other = (
            torch.load(tmp_path / f"work/weight/{n}_16.pth", weights_only=True)["model"] for n in (2, 3)
        )
        assert all(torch.equal(value, other[key]) for key, value in one.items())

    def test_code_in_a_checkpoint_is_not_run(self, start, tmp_path):
        trace = tmp_path / "trace"
        bad = tmp_path / "bad.pth"

        class Malicious:
            def __reduce__(self):
                return os.system, (f"touch {trace}",)

        torch.save({"berthash": Malicious()}, bad)
        pickle.loads(pickle.dumps(Malicious()))  # the file would leave a trace
        assert trace.exists()
        trace.unlink()
        with pytest.raises(BadInput, match="not a checkpoint: expected tensors, numbers and text"):
            read_checkpoint(bad)
        assert start("--stage", "test", "--weight_path", bad)[0] == 2
        assert not trace.exists()


class TestWriting:
    def test_a_failing_write_keeps_the_previous_file(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("previous")

        def fail(temporary):
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

        with pytest.raises(BadInput, match="file: cannot be written: No space left on device"):
            write_whole(path, fail)
        assert path.read_text() == "previous"
        assert [each.name for each in tmp_path.iterdir()] == ["file"]

    def test_a_full_disk_during_training_keeps_the_last_checkpoint(self, start, tmp_path, monkeypatch):
        save, saved = torch.save, []

        def full(content, path, *args, **kwargs):
            save(content, path, *args, **kwargs)
            saved.append(path)
            if len(saved) == 3:
                os.truncate(path, 100)
                raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

        monkeypatch.setattr(torch, "save", full)
        status, _, err = start("--stage", "pretrain")
        assert status == 2
        assert "1_16.part.pth: cannot be written: disk full? (PytorchStreamWriter failed" in err
        assert read_checkpoint(tmp_path / "work/weight/1_16.part.pth")["position"] == (1, 0, 0)
        monkeypatch.setattr(torch, "save", save)
        assert start("--resume")[0] == 0
        assert [path.name for path in (tmp_path / "work/weight").iterdir()] == ["1_16.pth"]

    def test_a_folder_that_cannot_be_made(self, start, tmp_path):
        (tmp_path / "work/weight").write_text("a file is in the way")
        status, _, err = start()
        assert status == 2
        assert "weight: cannot be written to: " in err

    def test_stale_temporaries_are_removed(self, start, tmp_path):
        def die(temporary):
            temporary.write_text("half")
            os._exit(9)

        (tmp_path / "work/weight").mkdir()
        if (child := os.fork()) == 0:
            write_whole(tmp_path / "work/weight/1_16.pth", die)
        os.waitpid(child, 0)
        assert len(list((tmp_path / "work/weight").iterdir())) == 1
        start("--stage", "pretrain")
        assert [path.name for path in (tmp_path / "work/weight").iterdir()] == ["1_16.pth"]


@pytest.mark.parametrize(("stage", "name"), [("pretrain", "reconstruction"), ("conmh.train", "views")])
def test_a_loss_that_is_not_finite_stops(start, dataset, tmp_path, stage, name):
    features = dataset.features["train"]
    features[3] = 3e38  # finite, but its norm is not
    write_features(dataset.folder / "train.h5", features)
    status, _, err = start("--stage", stage)
    assert status == 2
    assert f"the loss is not finite in epoch 1, pass {name}, batch " in err
    assert "reconstruction = " in err
    assert err.count("\n") == 1
    assert read_checkpoint(tmp_path / "work/weight/1_16.part.pth")["position"] == (0, 0, 0)


class Killed(BaseException):
    """Stands for SIGKILL within this process."""


def trained(work: Path) -> tuple[list, dict]:
    """What must not depend on interruptions: losses of every epoch and results, and the final weights."""
    lines = [line for path in sorted(work.glob("log/*.jsonl")) for line in json_lines(path)]
    numbers = [(line["event"], line.get("epoch"), line.get("losses"), line.get("mAP")) for line in lines]
    weights = {path.name: torch.load(path, weights_only=True) for path in work.glob("weight/*_16.pth")}
    return numbers, weights


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for n in one[1]:
        for part in ("model", "sums", "losses", "position"):
            if part == "model":
                assert all(
                    torch.equal(value, other[1][n][part][key]) for key, value in one[1][n][part].items()
                )
            else:
                assert one[1][n][part] == other[1][n][part]
        states = (content[1][n]["optimizer"]["state"] for content in (one, other))
        for mine, theirs in zip(*(state.values() for state in states), strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)


class TestResume:
    @pytest.mark.parametrize(
        ("pipeline", "where", "at_least"),
        [
            ("pipeline", "batch", 5),
            ("pipeline", "save", 3),
            ("pipeline", "log", 3),
            ("pipeline", "kmeans", 2),
            ("pipeline", "finish", 1),
            ("conmh.pipeline", "batch", 3),
            ("conmh.pipeline", "save", 3),
            ("conmh.pipeline", "log", 3),
            ("conmh.pipeline", "finish", 1),
        ],
    )
    def test_bit_for_bit_wherever_it_was_killed(
        self, start, tmp_path, monkeypatch, pipeline, where, at_least
    ):
        """Kill at the first such place, at the second, ...: every one of them once, resuming in between."""
        from engine.runs import Run

        assert start("--stage", pipeline)[0] == 0
        undisturbed = trained(tmp_path / "work")
        for folder in ("log", "weight", "result"):
            (tmp_path / "work" / folder).rename(tmp_path / f"undisturbed_{folder}")
        begin = ("--stage", pipeline, "--checkpoint_minutes", 1e-9)
        count = {"left": 0}

        def dying(function, before):
            def call(*args, **kwargs):
                if before and count["left"] == 0:
                    raise Killed
                result = function(*args, **kwargs)
                count["left"] -= 1
                if not before and count["left"] < 0:
                    raise Killed
                return result

            return call

        place = {
            "batch": (torch.optim.Adam, "step", True),
            "save": (engine.checkpoint.torch, "save", False),
            "log": (Run, "append", False),
            "kmeans": (__import__("train"), "kmeans", True),
            "finish": (Path, "unlink", False),
        }[where]
        kills = 0
        for survived in range(60):
            count["left"] = survived
            with monkeypatch.context() as patch:
                patch.setattr(place[0], place[1], dying(getattr(place[0], place[1]), place[2]))
                try:
                    has_run = list((tmp_path / "work").glob("log/*.jsonl"))
                    status, _, err = start(*(["--resume"] if has_run else begin))
                except Killed:
                    kills += 1
                    continue
            assert status == 0 or "no unfinished run" in err  # killed behind its very last line
            break
        assert kills >= at_least
        assert_same(trained(tmp_path / "work"), undisturbed)
        assert {path.name for path in (tmp_path / "work/weight").iterdir()} == undisturbed[1].keys()

    def test_other_settings_are_refused_and_named(self, start, tmp_path, monkeypatch):
        self.interrupt(start, monkeypatch, "--lr", 1e-4)
        status, _, err = start("--resume", "--lr", 2e-4, "--cfg.a", 1)
        assert status == 2
        assert "cfg.a was 0.02, is 1.0; lr was 0.0001, is 0.0002" in err
        err = start("--resume", "--stage", "bth.train")[2]
        assert err == "error: --resume: run 1 is of stage pipeline, not bth.train\n"
        assert start("--resume", "--num_workers", 0, "--memory", "disk")[0] == 0
        status, _, err = start("--resume", 2)
        assert (status, "run 2 has finished" in err) == (2, True)

    def test_an_unfinished_run_is_mentioned(self, start, monkeypatch):
        self.interrupt(start, monkeypatch, "--stage", "pretrain")
        _, out, _ = start("--stage", "pretrain")
        first = out.splitlines()[0]
        assert first.startswith("run 1 (pretrain) is unfinished; to go on with it: python run.py --resume 1,")
        assert "run 2: pretrain" in out

    def test_a_changed_part_is_refused(self, start, tmp_path, monkeypatch):
        self.interrupt(start, monkeypatch)
        part = tmp_path / "work/weight/1_16.part.pth"
        content = torch.load(part, weights_only=True)
        content["settings"]["lr"] = 1.0
        torch.save(content, part)
        status, _, err = start("--resume")
        assert status == 2
        assert "1_16.part.pth: a checkpoint of another run: lr was 1.0, is 0.001" in err

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("position", (0, 9, 0)),
            ("model", {}),
            ("optimizer", None),
            ("logs", {"1.jsonl": 10**9}),
            ("sums", ...),
        ],
    )
    def test_a_damaged_part_is_refused(self, start, tmp_path, monkeypatch, key, value):
        self.interrupt(start, monkeypatch)
        part = tmp_path / "work/weight/1_16.part.pth"
        content = torch.load(part, weights_only=True)
        content[key] = value
        if value is ...:
            del content[key]
        torch.save(content, part)
        before = snapshot(tmp_path)
        status, _, err = start("--resume")
        assert status == 2
        assert err.count("\n") == 1
        assert snapshot(tmp_path) == before

    def test_other_features_are_refused(self, start, dataset, tmp_path, monkeypatch):
        self.interrupt(start, monkeypatch, "--stage", "pretrain")
        write_features(dataset.folder / "train.h5", dataset.features["train"][:10])
        assert "shape was [20, 6, 24], is [10, 6, 24]" in start("--resume")[2]

    def test_replaced_features_are_refused_and_moved_ones_are_not(self, start, dataset, monkeypatch):
        self.interrupt(start, monkeypatch, "--stage", "pretrain")
        write_features(dataset.folder / "train.h5", dataset.features["train"][::-1])
        assert "a checkpoint of another run: features.digest was " in start("--resume")[2]
        (dataset.folder / "elsewhere").mkdir()
        write_features(dataset.folder / "elsewhere/a.h5", dataset.features["train"], compression="gzip")
        (dataset.folder / "train.h5").unlink()
        (dataset.folder / "train.h5").symlink_to(dataset.folder / "elsewhere/a.h5")
        assert start("--resume")[0] == 0

    def test_nor_are_they_exchanged_between_two_stages(self, start, dataset, monkeypatch):
        self.interrupt(start, monkeypatch, n_saves=4)  # the pre-trained network is there, no part of train
        write_features(dataset.folder / "train.h5", dataset.features["train"][::-1])
        assert "1_16.pth: it was trained on other features than" in start("--resume")[2]
        write_features(dataset.folder / "train.h5", dataset.features["train"])
        assert start("--resume")[0] == 0

    def test_an_older_checkpoint_names_files_instead(self, start, dataset, tmp_path, monkeypatch):
        self.interrupt(start, monkeypatch, "--stage", "pretrain")
        part = tmp_path / "work/weight/1_16.part.pth"
        content = torch.load(part, weights_only=True)
        features = content["inputs"]["features"]
        del features["digest"]
        features["files"] = ["elsewhere/train.h5"]
        torch.save(content, part)
        write_features(dataset.folder / "train.h5", dataset.features["train"][:10])
        assert "shape was [20, 6, 24], is [10, 6, 24]" in start("--resume")[2]
        write_features(dataset.folder / "train.h5", dataset.features["train"])
        assert start("--resume")[0] == 0

    def test_goes_on_from_the_checkpoint_it_began_with(self, start, tmp_path, monkeypatch):
        start("--stage", "pretrain")
        self.interrupt(start, monkeypatch, "--stage", "train")
        start("--stage", "pretrain", "--seed", 7)
        assert start("--resume", 2)[0] == 0
        start("--stage", "train", "--weight_path", "weight/1_16.pth")
        files = (tmp_path / f"work/weight/{n}_16.pth" for n in (2, 4))
        one, other = (torch.load(file, weights_only=True)["model"] for file in files)
        assert all(torch.equal(value, other[key]) for key, value in one.items())

    def test_damaged_lines_of_a_log_are_passed_over(self, start, tmp_path, monkeypatch):
        self.interrupt(start, monkeypatch, "--stage", "pretrain")
        with open(tmp_path / "work/log/1.jsonl", "ab") as file:
            file.write(b"[1, 2]\n\xff\xfe half a line")
        assert start("--resume")[0] == 0
        events = [line["event"] for line in json_lines(tmp_path / "work/log/1.jsonl")]
        assert events == ["reserved", "start", "epoch", "epoch", "end"]

    def test_foreign_files_among_the_logs_are_passed_over(self, start, tmp_path):
        log = tmp_path / "work/log"
        log.mkdir()
        (log / "7.jsonl").write_bytes(bytes(range(256)))
        (log / "8.jsonl").write_text('{"event": "reserved"}\n')
        (log / "9.jsonl").mkdir()
        (log / "²³.jsonl").write_text("no number")
        (log / "notes.jsonl").write_text("[]")
        status, out, _ = start("--stage", "pretrain")
        assert status == 0
        assert "run 10: pretrain" in out

    @staticmethod
    def interrupt(start, monkeypatch, *arguments, n_saves=2):
        """Stop a run after its second save, or another one."""
        save, calls = engine.loop.save_checkpoint, []

        def stop(path, content):
            save(path, content)
            calls.append(path)
            if len(calls) == n_saves:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(engine.loop, "save_checkpoint", stop)
            with pytest.raises(Killed):
                start(*arguments)


class TestProcesses:
    """The same with real processes and real signals."""

    @staticmethod
    def wait_for(path: Path, text: str, process) -> None:
        while process.poll() is None and not (path.exists() and text in path.read_text()):
            time.sleep(0.01)
        assert process.poll() is None

    def test_two_at_once_share_no_number_and_a_signal_saves_and_says_how_to_go_on(
        self, spawn, start, tmp_path
    ):
        processes = [spawn("--stage", "pretrain", "--max_iter", 100000, 0) for _ in range(2)]
        logs = [tmp_path / f"work/log/{n}.jsonl" for n in (1, 2)]
        for path, process in zip(logs, processes, strict=True):
            self.wait_for(path, '"epoch": 2,', process)
        assert "run 2 is under way in another process" in start("--resume", 2)[2]
        numbers = [json.loads(path.read_text().split("\n")[0])["runs"] for path in logs]
        assert numbers == [[1], [2]]
        told = set()
        signals = ((signal.SIGINT, 130), (signal.SIGTERM, 143))
        for process, (number, status) in zip(processes, signals, strict=True):
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
            assert process.returncode == status
            told.add(err)
        assert told == {f"stopped; to go on with it: python {ROOT / 'run.py'} --resume {n}\n" for n in (1, 2)}
        for n, path in enumerate(logs, 1):
            part = read_checkpoint(tmp_path / f"work/weight/{n}_16.part.pth")
            epochs = [line["epoch"] for line in json_lines(path) if line["event"] == "epoch"]
            assert epochs == list(range(1, len(epochs) + 1))
            assert part["position"][0] == len(epochs)

    def test_sigkill(self, spawn, start, tmp_path):
        log = tmp_path / "work/log"
        options = ("--max_iter", 40, 20)
        for number in (1, 2):  # once in either training stage
            process = spawn(*options)
            self.wait_for(log / f"{number}.jsonl", '"epoch": 2,', process)
            process.kill()
            process.communicate()
            options = ("--resume",)
        status, _, err = start(*options)
        assert (status, err) == (0, "")
        for number, n_epochs in ((1, 40), (2, 20)):
            lines = json_lines(log / f"{number}.jsonl")
            epochs = [line["epoch"] for line in lines if line["event"] == "epoch"]
            assert epochs == list(range(1, n_epochs + 1))
        assert sorted(path.name for path in (tmp_path / "work/weight").iterdir()) == ["1_16.pth", "2_16.pth"]
