"""The file of codes: packed bits of many videos with what they were made by, from and for.

HDF5 with ``codes`` uint8 (N, ceil(b / 8)), first bit highest; ``zeros`` uint32 (N,), how many entries of a
video's code were 0 and became +1; ``labels`` uint8 (N, num_class) where there are any; and as attributes
``bits``, ``codes_digest`` and, of the network, ``digest``, ``system``, ``dataset`` (trained on), then
``settings``, ``sources`` and ``features`` (their digest).

Axes: N videos, b bits.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from formats.files import BadInput, write_whole
from formats.hdf5 import find_array, read_text, reading, write_texts

TEXTS = ("digest", "codes_digest", "system", "dataset", "settings", "sources", "features")  # attributes
BLOCK = 1 << 16  # videos copied at a time


@dataclass(frozen=True)
class CodeFile:
    """A file of codes, read."""

    path: Path
    codes: np.ndarray  # (N, ceil(b / 8)) uint8
    zeros: np.ndarray  # (N,) uint32
    labels: np.ndarray | None  # (N, num_class) uint8
    bits: int
    digest: str  # of the network
    fingerprint: str  # of the codes

    def __len__(self) -> int:
        return len(self.codes)


def record(bits: int) -> np.dtype:
    """A video in the file under way: its code and how many of its entries were 0."""
    return np.dtype([("code", "u1", (-(-bits // 8),)), ("zeros", "<u4")])


def write_code_file(path: Path, part: Path, bits: int, labels: np.ndarray | None, attributes: dict) -> None:
    """Make the file of codes out of the records of ``part``, whole or not at all.

    Raises:
        BadInput: it cannot be written.
    """
    records = np.memmap(part, record(bits), "r")

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            codes = file.create_dataset("codes", (len(records), records["code"].shape[1]), "u1")
            zeros = file.create_dataset("zeros", (len(records),), "<u4")
            found = hashlib.sha256()
            for rows in blocks(len(records)):
                codes[rows], zeros[rows] = records["code"][rows], records["zeros"][rows]
                found.update(np.ascontiguousarray(records["code"][rows]))
            if labels is not None:
                file["labels"] = labels
            file.attrs["bits"] = bits
            write_texts(file, {**attributes, "codes_digest": found.hexdigest()[:16]})

    write_whole(path, write)


def blocks(n_videos: int) -> Iterator[slice]:
    """All videos, some at a time."""
    for start in range(0, n_videos, BLOCK):
        yield slice(start, min(start + BLOCK, n_videos))


def read_attributes(path: Path) -> dict[str, str | None]:
    """What a file of codes says of itself.

    Raises:
        BadInput: it is damaged.
    """
    with reading(path), h5py.File(path, "r") as file:
        return {key: read_text(file, key) for key in TEXTS}


def read_code_file(path: Path) -> CodeFile:
    """Read a file of codes; its arrays stay in the file until they are used.

    Raises:
        BadInput: it is missing, damaged, or no file of codes.
    """
    if not path.exists():
        raise BadInput(f"{path}: no such file of codes; stage tools.encode makes one")
    with reading(path), h5py.File(path, "r") as file:
        bits, (digest, fingerprint) = file.attrs.get("bits"), (read_text(file, key) for key in TEXTS[:2])
        if not isinstance(bits, np.integer) or not 0 < bits <= 2**16 or not (digest and fingerprint):
            raise BadInput(f"{path}: no file of codes: expected the attributes 'bits' and {TEXTS[:2]}")
        n_bytes = -(-int(bits) // 8)
        arrays = {key: find_array(file, key, path) for key in ("codes", "zeros", "labels") if key in file}
        found = {key: (array.dtype.name, *array.shape) for key, array in arrays.items()}
        n_videos = len(arrays.get("codes", ()))
        right = {"codes": ("uint8", n_videos, n_bytes), "zeros": ("uint32", n_videos)}
        if "labels" in found:
            right["labels"] = ("uint8", n_videos, found["labels"][-1])
        if found != right or n_videos == 0:
            expected = f"'codes' (N, {n_bytes}) of {bits} bits, 'zeros' (N,), perhaps 'labels' (N, num_class)"
            raise BadInput(f"{path}: expected {expected}, found {found}")
        read = {key: mapped(path, array) for key, array in arrays.items()}
    if hashlib.sha256(read["codes"]).hexdigest()[:16] != fingerprint:
        raise BadInput(f"{path}: damaged: its codes are not those that were written (their digest differs)")
    return CodeFile(path, read["codes"], read["zeros"], read.get("labels"), int(bits), digest, fingerprint)


def mapped(path: Path, array: h5py.Dataset) -> np.ndarray:
    """An array in place, as ``write_code_file`` lays it out; read where it is stored otherwise."""
    offset = array.id.get_offset()
    return array[()] if offset is None else np.memmap(path, array.dtype, "r", offset, array.shape)
