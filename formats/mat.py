"""MAT files of version 5 or 7.3: their numeric variables as MATLAB shows them.

Version 5 is read here and not by scipy, whose reader follows a damaged length out of its memory and dies.
Such a file is a header and a list of elements: a type, a length, the content. An array is one of elements.
"""

import contextlib
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from formats.hdf5 import check_array, reading

Variables = Mapping[str, Callable[[], np.ndarray] | None]
HEADER, HEAD = 128, 1 << 12  # bytes of a file before its elements; of an array that hold its name for sure
ARRAY, COMPRESSED = 14, 15  # types of elements; the others are numbers:
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# Classes of arrays; the numbers in the file may be of a smaller type.
SPARSE = 5
CLASSES = {SPARSE: "f8", 6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4",
           14: "i8", 15: "u8"}  # fmt: skip
COMPLEX = 0x800  # flag of an array


@contextlib.contextmanager
def open_mat(path: Path) -> Iterator[Variables]:
    """The variables of a MAT file: how to read those that are numeric, None for the others.

    Raises:
        BadInput: the file is damaged, also if that shows when a variable is read.
    """
    with reading(path, kind="MAT"):
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                yield {name: version_73(file[name]) for name in file if not name.startswith("#")}
        else:
            yield dict(version_5(path.read_bytes()))


def version_73(variable: h5py.Dataset | h5py.Group) -> Callable[[], np.ndarray] | None:
    """How to read a variable of a 7.3 file, an HDF5 file that stores arrays transposed."""
    if "MATLAB_sparse" in variable.attrs:
        return lambda: sparse_73(variable)
    if not isinstance(variable, h5py.Dataset) or variable.shape is None or variable.dtype.kind not in "biuf":
        return None
    if variable.attrs.get("MATLAB_class") == b"char" or "MATLAB_empty" in variable.attrs:
        return None

    def read() -> np.ndarray:
        check_array(variable, f"'{variable.name}'")
        return variable[()].T

    return read


def sparse_73(group: h5py.Group) -> np.ndarray:
    """The matrix of a sparse variable of a 7.3 file; ``data`` and ``ir`` are missing where all is 0."""
    parts = [group[name][()] if name in group else np.zeros(0) for name in ("data", "ir", "jc")]
    return dense(int(group.attrs["MATLAB_sparse"]), *parts)


def version_5(data: bytes) -> Iterator[tuple[str, Callable[[], np.ndarray] | None]]:
    """The variables of a version 5 file by name, and how to read them."""
    if data[126:128] not in (b"IM", b"MI"):
        raise ValueError("neither version 5 nor 7.3")
    order, position = "<" if data[126:128] == b"IM" else ">", HEADER
    while position < len(data):
        kind, content, position = element(data, position, order)
        packed = kind == COMPRESSED
        head = zlib.decompressobj().decompress(content, HEAD)[8:] if packed else content[:HEAD]
        if packed or kind == ARRAY:
            flags, _, name, _ = array_head(head, order)
            if name:  # else MATLAB's own
                numeric = flags & 0xFF in CLASSES and not flags & COMPLEX
                yield name, (lambda c=content, p=packed: array(c, p, order)) if numeric else None


def element(data: bytes, position: int, order: str) -> tuple[int, bytes, int]:
    """The type and the content of the element at a position, and the position behind it."""
    kind, size = struct.unpack_from(f"{order}II", data, position)
    start = position + 8
    if kind >> 16:  # a small one: its size beside the type, its content in the place of the size
        kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
    end = start + size
    if end > len(data) or (start < position + 8 < end):
        raise ValueError(f"an element of {size} bytes at {position} of {len(data)}")
    behind = end if kind == COMPRESSED else end + (position - end) % 8  # padded to 8 bytes
    return kind, data[start:end], behind


def array_head(body: bytes, order: str) -> tuple[int, bytes, str, int]:
    """Flags, shape (as it is stored) and name of an array, and where its numbers begin."""
    _, flags, position = element(body, 0, order)
    _, shape, position = element(body, position, order)
    _, name, position = element(body, position, order)
    return struct.unpack_from(f"{order}I", flags)[0], shape, name.decode("latin-1"), position


def array(content: bytes, packed: bool, order: str) -> np.ndarray:
    """The array that an element holds."""
    body = zlib.decompress(content)[8:] if packed else content
    flags, shape, _, position = array_head(body, order)
    shape, kind = np.frombuffer(shape, f"{order}i4").tolist(), flags & 0xFF
    parts = []
    for _ in range(3 if kind == SPARSE else 1):
        number, part, position = element(body, position, order)
        parts.append(np.frombuffer(part, order + NUMBERS[number]))
    if kind == SPARSE:
        return dense(shape[0], parts[2], *parts[:2])
    if len(parts[0]) != math.prod(shape) or min(shape) < 0:
        raise ValueError(f"{len(parts[0])} numbers in an array of shape {shape}")
    return parts[0].astype(CLASSES[kind]).reshape(shape, order="F")


def dense(n_rows: int, data: np.ndarray, ir: np.ndarray, jc: np.ndarray) -> np.ndarray:
    """The matrix whose column c holds ``data[jc[c]:jc[c + 1]]`` in the rows ``ir`` of these places."""
    rows, ends = ir.astype(np.int64), jc.astype(np.int64)
    counts = np.diff(ends)
    if len(ends) < 1 or ends[0] != 0 or (counts < 0).any() or not len(data) == len(rows) == ends[-1]:
        raise ValueError("a sparse matrix whose columns do not fit its numbers")
    if len(rows) and not 0 <= rows.min() <= rows.max() < n_rows:
        raise ValueError("a sparse matrix with entries outside of it")
    matrix = np.zeros((n_rows, len(counts)), data.dtype)
    matrix[rows, np.repeat(np.arange(len(counts)), counts)] = data
    return matrix
