"""The stage that writes codes into a file: what it holds, where it goes on, what it refuses."""

import os
import re
import shutil

import h5py
import numpy as np
import pytest
from synthetic import GOLDEN, N_DATABASE, N_FRAMES, N_QUERY, WIDTH, json_lines, write_features

import engine.feed
import tools.encode
from formats.bits import pack, unpack
from formats.codefile import read_code_file, write_code_file
from formats.files import BadInput
from metrics import evaluate
from tools.codes import hash_videos, load_network


@pytest.fixture
def encode(start):
    """Train a little, then encode."""
    assert start("--stage", "pretrain")[0] == 0
    return lambda *options: start("--stage", "tools.encode", *options)


def test_database_and_queries_of_the_dataset(encode, dataset):
    status, out, err = encode()
    assert (status, err) == (0, "")
    assert "run 2: tools.encode on" in out
    net = load_network("weight/1_16.pth", "cpu")
    for name, count in (("test", N_DATABASE), ("query", N_QUERY)):
        found = read_code_file(dataset.folder.parent / f"work/code/2_16_{name}.h5")
        codes = hash_videos(net, dataset.features[name])
        assert np.array_equal(found.codes, pack(codes))
        assert np.array_equal(found.zeros, (codes == 0).sum(1))
        assert np.array_equal(found.exact(), codes)
        assert (codes == 0).any()
        assert np.array_equal(found.labels, dataset.labels[name])
        assert (found.bits, len(found)) == (16, count)
        zeros = f"; {(codes == 0).sum()} entries were 0 (frames in a tie) and count as +1"
        assert f"code/2_16_{name}.h5: {count} videos{zeros}" in out
    with h5py.File("code/2_16_test.h5") as file:
        said = dict(file.attrs)
    assert (said["system"], said["dataset"], said["bits"]) == (
        b"WSCH",
        b"pretrain on synthetic, seed 3346",
        16,
    )
    assert str(dataset.folder / "test.h5") in said["sources"].decode()


def test_any_features_without_labels_or_a_dataset(encode, dataset, tmp_path):
    write_features(tmp_path / "a.h5", dataset.features["train"][:7].astype(np.float16))
    write_features(tmp_path / "b.h5", dataset.features["train"][7:].astype(np.float16))
    options = ("--features", tmp_path / "a.h5", tmp_path / "b.h5", "--weight_path", "weight/1_16.pth")
    dataset.path.unlink()
    assert encode(*options)[0] == 0
    found = read_code_file(tmp_path / "work/code/2_16.h5")
    expected = hash_videos(
        load_network("weight/1_16.pth", "cpu"), dataset.features["train"].astype(np.float16)
    )
    assert np.array_equal(found.codes, pack(expected))
    assert found.labels is None


@pytest.mark.parametrize("system", ["bth", "conmh"])
def test_a_published_network(start, tmp_path, system):
    write_features(tmp_path / "x.h5", np.random.default_rng(0).standard_normal((9, 4, 40)).astype(np.float32))
    options = ("--features", tmp_path / "x.h5", "--weight_path", GOLDEN / f"{system}_tiny.pth")
    assert start("--stage", "tools.encode", *options)[0] == 0
    assert len(read_code_file(tmp_path / "work/code/1_16.h5")) == 9


def test_map_of_the_files_is_that_of_the_test_where_no_entry_is_0(start, dataset):
    for name in ("train", "test", "query"):  # an odd number of frames: no ties
        write_features(dataset.folder / f"{name}.h5", dataset.features[name][:, :5])
    dataset.change(max_frames=5)
    start("--stage", "pretrain")
    start("--stage", "test")
    start("--stage", "tools.encode")
    database, query = (
        read_code_file(dataset.folder.parent / f"work/code/3_16_{name}.h5") for name in ("test", "query")
    )
    assert not database.zeros.any()
    assert database.known is None
    assert np.array_equal(database.exact(), unpack(database.codes, 16))
    codes = (unpack(each.codes, 16) for each in (query, database))
    found = evaluate(*codes, query.labels, database.labels, [5, 20, 40, 60, 80, 100])
    assert {str(k): value for k, value in found.map.items()} == json_lines("log/2.jsonl")[-2]["mAP"]


@pytest.mark.parametrize("survived", range(6))
def test_goes_on_in_the_middle_with_the_same_bytes(encode, monkeypatch, survived):
    """Killed behind some batch, with half a record left over."""
    encode("--batch_size", 30)
    calm = {name: open(f"code/2_16_{name}.h5", "rb").read() for name in ("test", "query")}
    blocks, left = engine.feed.encode_blocks, [survived]

    def dying(*arguments):
        for codes in blocks(*arguments):
            yield codes
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tools.encode, "encode_blocks", dying)
        status, _, _ = encode("--batch_size", 30)
        assert status == (130 if survived < 5 else 0)
    for part in os.listdir("code"):
        if part.endswith(".part"):
            with open(f"code/{part}", "ab") as file:
                file.write(b"half")
    if status == 130:
        assert encode("--resume")[0] == 0
    found = {name: open(f"code/3_16_{name}.h5", "rb").read() for name in ("test", "query")}
    assert found == calm
    assert not [name for name in os.listdir("code") if name.endswith(".part")]


def test_only_what_is_left_is_encoded_again(encode, monkeypatch):
    seen = []
    hashed = engine.feed.encode_blocks

    def stop(*arguments):
        seen.append(arguments[5])  # first
        for number, codes in enumerate(hashed(*arguments)):
            yield codes
            if number == 1 and len(seen) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(tools.encode, "encode_blocks", stop)
    assert encode("--batch_size", 30)[0] == 130
    assert encode("--resume")[0] == 0
    assert seen == [0, 60, 0]


def test_killed_as_the_file_was_made(encode, dataset, monkeypatch):
    """Then its features are moved."""

    def made(*arguments):
        write_code_file(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tools.encode, "write_code_file", made)
        assert encode()[0] == 130
    os.rename(dataset.folder / "test.h5", dataset.folder / "moved.h5")
    dataset.change(test="moved.h5")
    assert encode("--resume")[0] == 0
    assert sorted(os.listdir("code")) == ["2_16_query.h5", "2_16_test.h5"]


def test_features_without_a_dataset_go_on_too(encode, dataset, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tools.encode, "write_code_file", killed)
        options = ("--features", dataset.folder / "test.h5", "--weight_path", "weight/1_16.pth")
        assert encode(*options)[0] == 130
    assert encode("--resume")[0] == 0
    assert os.listdir("code") == ["2_16.h5"]


@pytest.mark.parametrize(("name", "status"), [("train", 0), ("query", 2)])
def test_two_log_folders_and_one_code_folder(encode, dataset, tmp_path, monkeypatch, name, status):
    """Both give out the same number: no run goes on with another one's codes, or replaces its file."""
    blocks, begun = engine.feed.encode_blocks, []

    def begin(name, folder):
        options = ("--features", dataset.folder / f"{name}.h5", "--weight_path", "weight/1_16.pth")
        return encode(*options, "--result_log_dir", folder, "--result_weight_dir", folder)

    def meanwhile(*arguments):
        begun.append(arguments)
        yield from blocks(*arguments)
        if len(begun) == 1:
            assert begin(name, "b")[0] == 0

    monkeypatch.setattr(tools.encode, "encode_blocks", meanwhile)
    found, _, err = begin("train", "a")
    assert found == status
    assert ("code/1_16.h5: holds codes of another network or other videos" in err) == (status == 2)
    assert len(read_code_file(tmp_path / "work/code/1_16.h5")) == len(dataset.features[name])


class TestRefusals:
    def test_features_need_a_network(self, encode, dataset):
        err = encode("--features", dataset.folder / "train.h5")[2]
        assert "'weight_path' must name a checkpoint: 'features' are of no dataset to find one for" in err

    @pytest.mark.parametrize(
        ("shape", "message"),
        [((5, N_FRAMES, WIDTH - 1), "has shape (5, 6, 23), expected (N, 6, 24)"),
         ((5, N_FRAMES - 1, WIDTH), "has shape (5, 5, 24), expected (N, 6, 24)")],
    )  # fmt: skip
    def test_features_of_another_shape(self, encode, tmp_path, shape, message):
        write_features(tmp_path / "x.h5", np.zeros(shape, np.float32))
        status, _, err = encode("--features", tmp_path / "x.h5", "--weight_path", "weight/1_16.pth")
        assert status == 2
        assert message in err

    def test_codes_that_are_not_finite(self, encode, dataset):
        features = dataset.features["test"].copy()
        features[50] *= 1e37
        write_features(dataset.folder / "test.h5", features)
        assert "test.h5: video 50: not finite: codes" in encode()[2]
        assert not [name for name in os.listdir("code") if name.endswith(".h5")]

    @pytest.mark.parametrize("place", ["part", "file"])
    def test_a_full_disk(self, encode, monkeypatch, place):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("numpy.packbits" if place == "part" else "formats.codefile.blocks", full)
            status, _, err = encode()
        assert (status, err.count("\n")) == (2, 1)
        name = r"code/2_16_test-.*\.part" if place == "part" else r"code/2_16_test\.h5"
        assert re.match(f"error: {name}: cannot be written: No space left on device\n", err)
        assert encode("--resume")[0] == 0
        assert sorted(os.listdir("code")) == ["2_16_query.h5", "2_16_test.h5"]

    def test_a_file_of_other_codes_in_its_place(self, encode, dataset):
        encode()
        os.rename("code/2_16_test.h5", "code/3_16_query.h5")
        assert "code/3_16_query.h5: holds codes of another network or other videos" in encode()[2]

    def test_no_file_of_codes(self, encode, dataset, tmp_path):
        encode()
        with pytest.raises(BadInput, match="no such file of codes; stage tools.encode makes one"):
            read_code_file(tmp_path / "none.h5")
        with pytest.raises(BadInput, match="no such file of codes; a test makes one"):
            read_code_file(tmp_path / "result/4_test.h5")
        os.remove("code/2_16_query.h5")
        with pytest.raises(BadInput, match="give the database's file twice, .*code/2_16_test.h5"):
            read_code_file(tmp_path / "work/code/2_16_query.h5")
        with pytest.raises(BadInput, match="test.h5: no file of codes: expected the attributes"):
            read_code_file(dataset.folder / "test.h5")
        path = tmp_path / "work/code/2_16_test.h5"
        with h5py.File(path, "r+") as file:
            file.attrs["bits"] = 20
        with pytest.raises(BadInput, match=r"expected 'codes' \(N, 3\) of 20 bits"):
            read_code_file(path)
        with h5py.File(path, "r+") as file:
            file.attrs["bits"] = 16
            labels, codes = file["labels"][()], file["codes"][()]
        for key, other in (("labels", labels[:, 0]), ("labels", labels[1:]), ("zeros", codes),
                           ("codes", codes.astype(np.uint16)), ("codes", codes[:0])):  # fmt: skip
            damaged = shutil.copy(path, tmp_path / "damaged.h5")
            with h5py.File(damaged, "r+") as file:
                del file[key]
                file[key] = other
            with pytest.raises(BadInput, match=r"expected 'codes' \(N, 2\) of 16 bits"):
                read_code_file(damaged)
        os.truncate(path, 900)
        with pytest.raises(BadInput, match="2_16_test.h5: not a readable HDF5 file"):
            read_code_file(path)

    def test_a_file_of_version_1_1_does_not_know_its_zeros(self, encode, tmp_path):
        encode()
        path = tmp_path / "work/code/2_16_test.h5"
        with h5py.File(path, "r+") as file:
            n_zeros = file["zeros"][()].sum()
            del file["known"]
        found = read_code_file(path)
        assert len(found) == N_DATABASE
        with pytest.raises(
            BadInput, match=f"does not say which {n_zeros} code entries were 0: made by version"
        ):
            found.exact()
        with h5py.File(path, "r+") as file:
            file["zeros"][:] = 0
        assert np.array_equal(read_code_file(path).exact(), unpack(found.codes, 16))

    def test_zeros_that_are_not_those_that_are_known(self, encode, tmp_path):
        encode()
        path = tmp_path / "work/code/2_16_test.h5"
        with h5py.File(path, "r+") as file:
            file["known"][3, 1] ^= 4
        with pytest.raises(
            BadInput, match="2_16_test.h5: damaged: its 'known' does not agree with its 'zeros'"
        ):
            read_code_file(path)

    def test_a_flipped_bit(self, encode, tmp_path):
        encode()
        path = tmp_path / "work/code/2_16_test.h5"
        with h5py.File(path, "r+") as file:
            file["codes"][3, 1] ^= 4
        with pytest.raises(
            BadInput, match="2_16_test.h5: damaged: its codes are not those that were written"
        ):
            read_code_file(path)

    def test_features_under_another_name(self, encode, dataset, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["frames"] = dataset.features["query"]
        options = ("--features", tmp_path / "x.h5", "--weight_path", "weight/1_16.pth")
        assert "no dataset 'feats'" in encode(*options)[2]
        assert encode(*options, "--feature_key", "frames")[0] == 0
