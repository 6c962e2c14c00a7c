"""MAT files of version 5 as scipy writes them, and as damage leaves them."""

import os

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from formats.files import BadInput
from formats.mat import HEADER, dense, open_mat

RNG = np.random.default_rng(0)
SPARSE = scipy.sparse.random_array((7, 5), density=0.3, format="csc", rng=RNG)
VARIABLES = {
    **{kind: RNG.integers(0, 100, (7, 5)).astype(kind) for kind in ("f4", "f8", "i1", "u1", "i2", "u2")},
    **{kind: RNG.integers(0, 100, (7, 5)).astype(kind) for kind in ("i4", "u4", "i8", "u8")},
    "x": np.arange(3),  # a short name and few numbers stand within their tags
    "logical": RNG.random((7, 5)) > 0.5,
    "cube": RNG.random((2, 3, 4)),
    "sparse": SPARSE,
    "nothing": scipy.sparse.csc_array((7, 5)),
    "complex": np.ones(3) * 1j,
    "text": "dog",
    "cell": np.array(["a", 1], object),
    "struct": {"a": 1},
    "a_long_name_of_a_variable": np.float64(1),
}


def read(path):
    with open_mat(path) as variables:
        return {name: function and function() for name, function in variables.items()}


@pytest.mark.parametrize("compressed", [False, True])
def test_numeric_variables_are_as_scipy_reads_them(tmp_path, compressed):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, VARIABLES, do_compression=compressed)
    found, expected = read(path), scipy.io.loadmat(path, spmatrix=False)
    assert list(found) == list(VARIABLES)
    assert {name for name, value in found.items() if value is None} == {"complex", "text", "cell", "struct"}
    for name, value in found.items():
        if value is not None:
            wanted = expected[name].toarray() if scipy.sparse.issparse(expected[name]) else expected[name]
            assert np.array_equal(value, wanted)
            assert value.dtype == wanted.dtype


def test_big_endian(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"labels": np.zeros((1, 1))})
    tags = np.frombuffer(path.read_bytes()[HEADER:], "<u4").copy()
    tags[8:12] = [
        1,
        1,
        0x00060001,
        ord("x") << 24,
    ]  # shape (1, 1), and a short name as the other order has it
    words = np.concatenate([tags[:12], [9, 8, 0x3FF80000, 0]])  # 1.5
    words[1] = 4 * len(words) - 8
    words[10] = 1 << 16 | 1  # one byte of int8
    path.write_bytes(path.read_bytes()[:124] + b"\x01\x00MI" + words.astype(">u4").tobytes())
    assert read(path)["x"] == 1.5


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_is_one_line(tmp_path, compressed):
    """Any byte may be wrong, any may be missing: the file is read or refused, and this process lives."""
    path, damaged = tmp_path / "a.mat", tmp_path / "damaged.mat"
    some = {name: VARIABLES[name] for name in ("f8", "u1", "x", "sparse", "text", "struct")}
    scipy.io.savemat(path, some, do_compression=compressed)
    content, rng, errors = path.read_bytes(), np.random.default_rng(1), []
    for number in range(400):
        wrong = bytearray(content[: rng.integers(len(content)) if number % 4 == 0 else None])
        for place in rng.integers(HEADER - 4, len(content), rng.integers(1, 4)):
            if place < len(wrong):
                wrong[place] = rng.integers(256) if number % 2 else wrong[place] ^ 1 << rng.integers(8)
        damaged.write_bytes(wrong)
        try:
            read(damaged)
        except BadInput as error:
            errors.append(str(error))
    assert len(errors) > 100
    assert all(error.startswith(f"{damaged}: ") and "\n" not in error for error in errors)


def test_a_file_cut_short_is_refused_whatever_is_missing(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"labels": np.ones((2, 2)), "text": "dog"})
    os.truncate(tmp_path / "a.mat", os.path.getsize(tmp_path / "a.mat") - 8)
    with pytest.raises(BadInput, match="an element of "):
        read(tmp_path / "a.mat")


@pytest.mark.parametrize(
    ("rows", "columns"), [([0, 7], [0, 1, 2]), ([0, -1], [0, 1, 2]), ([0, 1], [0, 3, 2]), ([0, 1], [0, 1, 3])]
)
def test_sparse_matrices_stay_within_bounds(rows, columns):
    assert dense(7, np.ones(2), np.array([0, 6]), np.array([0, 1, 2])).sum() == 2
    with pytest.raises(ValueError, match="a sparse matrix"):
        dense(7, np.ones(2), np.array(rows), np.array(columns))


def test_older_versions_are_named(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"labels": np.ones((40, 40))}, format="4")
    with pytest.raises(BadInput, match="not a readable MAT file .*: neither version 5 nor 7.3"):
        read(tmp_path / "a.mat")
