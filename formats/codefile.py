"""The file of codes: packed bits of many videos with what they were made by, from and for.

HDF5 with ``codes`` uint8 (N, ceil(b / 8)), first bit highest; ``zeros`` uint32 (N,), how many entries of a
video's code were 0 and became +1; where any was, ``known`` uint8 (N, ceil(b / 8)), packed likewise, 1 for an
entry that was not 0; ``labels`` uint8 (N, num_class) where there are any; and as attributes ``bits``,
``codes_digest`` and, of the network, ``digest``, ``system``, ``dataset`` (trained on), then ``settings``,
``sources`` and ``features`` (their digest).

Axes: N videos, b bits.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from formats.bits import unpack
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
    known: np.ndarray | None  # (N, ceil(b / 8)) uint8; None: no zeros, or a file of version 1.1
    labels: np.ndarray | None  # (N, num_class) uint8
    bits: int
    digest: str  # of the network
    fingerprint: str  # of the codes

    def __len__(self) -> int:
        return len(self.codes)

    def exact(self) -> np.ndarray:
        """The codes as they were, int8 (N, b) in {-1, 0, +1}.

        Raises:
            BadInput: some were 0, and the file does not say which.
        """
        codes = unpack(self.codes, self.bits)
        if self.known is not None:
            return codes * np.unpackbits(self.known, axis=1, count=self.bits).astype(np.int8)
        if n_zeros := int(self.zeros.sum(dtype=np.int64)):
            reason = f"does not say which {n_zeros} code entries were 0"
            raise BadInput(f"{self.path}: {reason}: made by version 1.1; encode the videos again")
        return codes


def record(bits: int) -> np.dtype:
    """A video on its way into the file: its code, and a bit 1 where an entry of it is not 0."""
    n_bytes = (-(-bits // 8),)
    return np.dtype([("code", "u1", n_bytes), ("known", "u1", n_bytes)])


def as_records(codes: np.ndarray | Tensor) -> np.ndarray:
    """Codes in {-1, 0, +1}, (N, b), as records (N,)."""
    codes = np.asarray(codes)
    records = np.empty(len(codes), record(codes.shape[1]))
    records["code"], records["known"] = np.packbits(codes >= 0, axis=1), np.packbits(codes != 0, axis=1)
    return records


def count_zeros(known: np.ndarray, bits: int) -> np.ndarray:
    """How many entries of every code are 0, uint32 (N,), from the bits of those that are not."""
    return (bits - np.bitwise_count(known).sum(1)).astype(np.uint32)


def write_code_file(
    path: Path, records: np.ndarray, bits: int, labels: np.ndarray | None, attributes: dict
) -> None:
    """Make a file of codes out of records, whole or not at all.

    Raises:
        BadInput: it cannot be written.
    """

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            codes = file.create_dataset("codes", (len(records), records["code"].shape[1]), "u1")
            zeros = file.create_dataset("zeros", (len(records),), "<u4")
            found, n_zeros = hashlib.sha256(), 0
            for rows in blocks(len(records)):
                codes[rows], zeros[rows] = records["code"][rows], count_zeros(records["known"][rows], bits)
                found.update(np.ascontiguousarray(records["code"][rows]))
                n_zeros += int(zeros[rows].sum(dtype=np.int64))
            if n_zeros:
                known = file.create_dataset("known", codes.shape, "u1")
                for rows in blocks(len(records)):
                    known[rows] = records["known"][rows]
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
        raise BadInput(f"{path}: no such file of codes; {how_to_have(path)}")
    with reading(path), h5py.File(path, "r") as file:
        bits, (digest, fingerprint) = file.attrs.get("bits"), (read_text(file, key) for key in TEXTS[:2])
        if not isinstance(bits, np.integer) or not 0 < bits <= 2**16 or not (digest and fingerprint):
            raise BadInput(f"{path}: no file of codes: expected the attributes 'bits' and {TEXTS[:2]}")
        n_bytes = -(-int(bits) // 8)
        keys = ("codes", "zeros", "known", "labels")
        arrays = {key: find_array(file, key, path) for key in keys if key in file}
        found = {key: (array.dtype.name, *array.shape) for key, array in arrays.items()}
        n_videos = len(arrays.get("codes", ()))
        right = {"codes": ("uint8", n_videos, n_bytes), "zeros": ("uint32", n_videos)}
        if "known" in found:
            right["known"] = right["codes"]
        if "labels" in found:
            right["labels"] = ("uint8", n_videos, found["labels"][-1])
        if found != right or n_videos == 0:
            expected = (f"'codes' (N, {n_bytes}) of {bits} bits, 'zeros' (N,), perhaps 'known' as 'codes' "
                        "and 'labels' (N, num_class)")  # fmt: skip
            raise BadInput(f"{path}: expected {expected}, found {found}")
        read = {key: mapped(path, array) for key, array in arrays.items()}
    if hashlib.sha256(read["codes"]).hexdigest()[:16] != fingerprint:
        raise BadInput(f"{path}: damaged: its codes are not those that were written (their digest differs)")
    known = read.get("known")
    if known is not None and not np.array_equal(count_zeros(known, bits), read["zeros"]):
        raise BadInput(f"{path}: damaged: its 'known' does not agree with its 'zeros'")
    labels = read.get("labels")
    return CodeFile(path, read["codes"], read["zeros"], known, labels, int(bits), digest, fingerprint)


def how_to_have(path: Path) -> str:
    """What to do about a file of codes that is not there."""
    database = path.with_name(path.name.replace("_query.h5", "_test.h5"))
    if database != path and database.exists():
        return f"where the database itself asks there is none: give the database's file twice, {database}"
    return "a test makes one" if path.parent.name == "result" else "stage tools.encode makes one"


def mapped(path: Path, array: h5py.Dataset) -> np.ndarray:
    """An array in place, as ``write_code_file`` lays it out; read where it is stored otherwise."""
    offset = array.id.get_offset()
    return array[()] if offset is None else np.memmap(path, array.dtype, "r", offset, array.shape)
