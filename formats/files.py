"""The ground floor: errors of one line, the user's paths, whole files, JSON, optional packages, bars."""

import contextlib
import difflib
import errno
import fcntl
import functools
import importlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from tqdm import tqdm

MANY = 5  # names that an error lists; of more it tells the number
ALIKE = 0.76  # of 1; with less, "loss" would be taken for "logs", and "weight_decay" for "weight_path"


class BadInput(ValueError):
    """A file or setting the user gave cannot be used; the message is one line that says what to mend."""


def expand(path: str) -> Path:
    """A path the user wrote, with ``~`` and environment variables expanded."""
    return Path(os.path.expanduser(os.path.expandvars(path)))


def write_whole(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place: whole or not at all.

    Raises:
        BadInput: the file cannot be written; the previous one, if any, is intact.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clean_temporaries(path.parent, path.name)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, survives a power cut
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch and HDF5 report a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or f"disk full? ({str(error).splitlines()[0]})"
        raise BadInput(f"{path}: cannot be written: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """See whether a folder can be made or written to, without doing it.

    Raises:
        BadInput: it cannot.
    """
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = "no permission to write" if there.is_dir() else "a file is in the way"
        raise BadInput(f"{path}: cannot be written to: {problem} ({there})")


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Make a folder if need be and hold its lock.

    Raises:
        BadInput: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise BadInput(f"{path}: cannot be written to: {error.strerror}") from None
    with lock:
        flock(lock, fcntl.LOCK_EX)
        yield


def flock(file: IO, operation: int) -> bool:
    """Lock a file open for writing (NFS wants that); False if another process holds it.

    Where the file system knows no locks, that is said once, and all go on without.
    """
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        say_without_locks(Path(file.name).parent)
    return True


@functools.cache
def say_without_locks(folder: Path) -> None:
    """Say once what follows for a folder without locks."""
    print(f"{folder}: no file locks here: start runs one by one, and resume none that is under way")


def clean_temporaries(folder: str | Path, name: str = "*") -> None:
    """Remove what ``write_whole`` left in a folder when its process, on this machine, was killed."""
    for path in Path(folder).glob(f"{name}.{platform.node()}.*.tmp"):
        process = path.name.split(".")[-2]
        if process.isdecimal() and not process_exists(int(process)):
            path.unlink(missing_ok=True)


def process_exists(number: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def read_json(path: str | Path) -> dict:
    """Read a JSON object.

    Raises:
        BadInput: the file is missing, has a syntax error, a doubled key, or is no object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise BadInput(f"{path}: key '{key}' stands there twice")
            content[key] = value
        return content

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except BadInput:
        raise
    except (OSError, ValueError, RecursionError) as error:  # not text, a number of 5,000 digits, a maze
        raise BadInput(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; only line feeds end them, and a byte order mark is no part of them.

    Raises:
        BadInput: the file cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None


def unknown_keys(
    found: Iterable[str], known: Iterable[str], where: str = "", meant: Mapping[str, str] | None = None
) -> list[str]:
    """Describe the keys of ``found`` that are not in ``known``, with the nearest known one; at most five.

    Args:
        found: keys.
        known: those that there are.
        where: what stands before each.
        meant: the known key that a word stands for, of known keys and other words; None: of known keys alone.
    """
    known = list(known)
    meant = meant or {key: key for key in known}
    unknown = [key for key in found if key not in known]
    problems = []
    for key in unknown[:MANY]:
        problems.append(f"unknown key '{where}{key}'{did_you_mean(key, meant, where, ALIKE)}")
    if len(unknown) > MANY:
        problems.append(f"{len(unknown) - MANY} more unknown keys")
    return problems


def did_you_mean(word: str, meant: Mapping[str, str], where: str = "", alike: float = 0.6) -> str:
    """What ends an error of an unknown word; empty where none of ``meant`` is like it.

    Args:
        word: what was found.
        meant: what the words stand for that there are.
        where: what stands before each of these.
        alike: how much, of 1, a word must be.
    """
    near = difflib.get_close_matches(word, meant, n=1, cutoff=alike)
    return f" (did you mean '{where}{meant[near[0]]}'?)" if near else ""


def some(names: Iterable[str]) -> str:
    """Names for an error, in order: five of them and how many more there are."""
    names = sorted(names)
    return f"{names[:MANY]}" + (f" and {len(names) - MANY} more" if len(names) > MANY else "")


def optional_package(module: str, name: str, extra: str) -> ModuleType:
    """A package that only ``requirements-<extra>.txt`` asks for.

    Args:
        module: to import.
        name: of the package.
        extra: which file of requirements names it.

    Raises:
        BadInput: it is not installed; says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise BadInput(f"this needs {name}: pip install -r requirements-{extra}.txt") from None


def progress(items: Iterable, description: str, **options: Any) -> tqdm:
    """A progress bar that shows after two seconds, and only on a terminal."""
    return tqdm(items, description, delay=2, leave=False, disable=None, **options)
