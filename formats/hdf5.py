"""HDF5 files: opened, looked into and read; whatever goes wrong with one is a line that says what to do."""

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from formats.files import BadInput, some


@contextlib.contextmanager
def reading(path: str | Path, what: str = "", kind: str = "HDF5") -> Iterator[None]:
    """Read a file here: what the libraries raise for it becomes one line.

    Args:
        path: of the file.
        what: what is being read of it.
        kind: of file, in words.

    Raises:
        BadInput: it cannot be read; says why, as far as that is known.
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # h5py raises many kinds for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = f"cannot be read, {what}" if what else f"not a readable {kind} file (damaged or truncated?)"
        raise BadInput(f"{path}: {known_cause(error) or f'{where}: {reason}'}") from None


def known_cause(error: Exception) -> str:
    """What is wrong where it is not the file's content; empty: perhaps it is."""
    text, number = str(error), getattr(error, "errno", None)
    if isinstance(error, MemoryError):
        return "needs more memory than there is (or is damaged)"
    if "already open for write" in text:
        return "another process writes it, or was killed while it did (then: h5clear -s FILE)"
    if "unable to lock file" in text and number in (errno.EAGAIN, errno.EACCES):
        return "locked by another process, which writes it"
    if "unable to lock file" in text:
        return "this file system has no locks: set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
    if number == errno.EMFILE:
        return "too many open files: raise the limit (ulimit -n 4096)"
    return f"cannot be read: {os.strerror(number)}" if number else ""


def find_array(file: h5py.File, key: str, path: str | Path, hint: str = "") -> h5py.Dataset:
    """A dataset of an open file, all of it there.

    Raises:
        BadInput: there is none of that name, or it cannot be read here.
    """
    array = file.get(key)
    if not isinstance(array, h5py.Dataset):
        raise BadInput(f"{path}: no dataset '{key}', found {some(file)}{hint}")
    check_array(array, f"{path}: '{key}'")
    return array


def check_array(array: h5py.Dataset, where: str) -> None:
    """See that a dataset can be decompressed here and that none of its chunks is missing.

    Raises:
        BadInput: it cannot, or one is: HDF5 reads what was never written as zeros.
    """
    if not array.chunks:
        return
    filters = array.id.get_create_plist()
    for code, _, _, name in map(filters.get_filter, range(filters.get_nfilters())):
        if not h5py.h5z.filter_avail(code):
            with contextlib.suppress(ImportError):
                import hdf5plugin  # noqa: F401 - brings further filters
        if not h5py.h5z.filter_avail(code):
            name = name.decode(errors="replace")
            raise BadInput(f"{where} is compressed with HDF5 filter {code} ({name}), "
                           "which is not there: pip install hdf5plugin")  # fmt: skip
    sides = zip(array.shape, array.chunks, strict=True)
    expected, found = math.prod(-(-size // chunk) for size, chunk in sides), array.id.get_num_chunks()
    if found < expected:
        raise BadInput(f"{where} is incomplete: {found} of {expected} chunks were written")


def write_texts(file: h5py.File, texts: dict[str, str]) -> None:
    """Texts as attributes of fixed length: HDF5 can search for ever in a damaged one of variable length."""
    for key, text in texts.items():
        file.attrs[key] = np.bytes_(text.encode())


def read_text(file: h5py.File, key: str) -> str | None:
    """A text among the attributes, of fixed or variable length; None: there is none."""
    found = file.attrs.get(key)
    if isinstance(found, bytes):
        return found.decode(errors="replace")
    return found if isinstance(found, str) else None
