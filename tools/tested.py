"""What a test leaves for those who look at it: its result, the codes it ranked, and the videos' names.

A test keeps codes with their labels (``result/<n>_test.h5`` and ``..._query.h5``). What the videos are called
and look like is found beside their features, ``F/test_feats.h5``: ``F/test_names.txt`` (line i is video i),
``F/thumbnails/<name>.jpg`` and ``F/classes.txt`` (line c is class c), likewise of the queries.

Axes: N videos, b bits.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from formats.codefile import CodeFile, read_attributes, read_code_file
from formats.files import BadInput, expand, read_lines
from tools.logs import Log, read_logs
from tools.search import check_pair


@dataclass(frozen=True)
class Split:
    """Database or queries: their codes, and what is known of the videos."""

    file: CodeFile
    home: Path | None  # the folder of their features
    names: list[str] | None
    thumbnails: Path | None  # the folder of these

    def codes(self) -> np.ndarray:
        """The codes that were ranked, (N, b)."""
        return self.file.exact()

    def name(self, video: int) -> str:
        """What a video is called."""
        return self.names[video] if self.names else f"video {video}"

    def thumbnail(self, video: int) -> bytes | None:
        """The JPEG of a video, if it has one; a name that leads out of the folder has none."""
        if not self.names or not self.thumbnails:
            return None
        path = self.thumbnails / f"{self.names[video]}.jpg"
        if not os.path.isfile(path) or not path.resolve().is_relative_to(self.thumbnails.resolve()):
            return None  # (Path.is_file raises for a name that can be none)
        content = path.read_bytes()
        return content if content.startswith(b"\xff\xd8\xff") else None


def find_result(name: str) -> Log:
    """The one log with a result and codes.

    Raises:
        BadInput: there is none, or more than one.
    """
    logs = [log for log in read_logs([name]) if log.result is not None]
    if len(logs) != 1:
        found = f"{len(logs)} logs with a result, name one of them" if logs else "no result of a test"
        raise BadInput(f"{name}: {found}")
    log, result = logs[0], logs[0].result
    if result.get("bits") is None:
        raise BadInput(f"{log.path}: ranked real values; a gallery is of codes (--method lsh, pca or itq)")
    files = result.get("codes")
    if not isinstance(files, dict) or not {type(files.get(key)) for key in ("database", "query")} == {str}:
        again = f"python run.py --stage {result.get('stage')} --weight_path {result.get('weights')}"
        raise BadInput(f"{log.path}: kept no codes, as tests did before version 1.2; test again: {again}")
    return log


def open_splits(
    log: Log, thumbnails: Path | None, database_names: Path | None, query_names: Path | None
) -> tuple[Split, Split]:
    """The codes that a test ranked, with what is known of their videos.

    Args:
        log: of the test.
        thumbnails: folder of them; None: beside the features.
        database_names: file of the names of the database's videos; None: beside their features.
        query_names: likewise.

    Raises:
        BadInput: a file is missing or damaged, or does not fit.
    """
    splits = []
    for key, names in (("database", database_names), ("query", query_names)):
        path = expand(log.result["codes"][key])
        if not path.exists():
            raise BadInput(f"{path}: no such file of codes; {log.path} names it, from where its test ran")
        file = read_code_file(path)
        if file.labels is None:
            raise BadInput(f"{path}: no labels, which tell right from wrong")
        sources = feature_files(path)
        home = sources[0].parent if sources else None
        found = [names] if names else found_names(sources)
        folder = thumbnails or (home and home / "thumbnails")
        splits.append(Split(file, home, read_names(found, file) if found else None, folder))
    database, query = (split.file for split in splits)
    check_pair(database, query, force=False)
    if (n := query.labels.shape[1]) != database.labels.shape[1]:
        raise BadInput(f"{query.path}: {n} classes, {database.path} has {database.labels.shape[1]}")
    return splits[0], splits[1]


def feature_files(path: Path) -> list[Path]:
    """The feature files that codes were made of; none where it does not say.

    Raises:
        BadInput: what it says is damaged.
    """
    try:
        sources = json.loads(read_attributes(path)["sources"] or "[]")
        return [expand(name) for name in sources]
    except (ValueError, TypeError):
        raise BadInput(f"{path}: damaged: 'sources' is no list of feature files") from None


def found_names(sources: Sequence[Path]) -> list[Path]:
    """The files of names beside features; none where there is not any."""
    beside = [path.with_name(f"{path.stem.removesuffix('_feats')}_names.txt") for path in sources]
    return beside if any(path.exists() for path in beside) else []


def read_names(paths: Sequence[Path], file: CodeFile) -> list[str]:
    """The names of the videos of a split, of all its files in order.

    Raises:
        BadInput: a file cannot be read, or there are more or fewer names than videos.
    """
    names = [line for path in paths for line in read_lines(path)]
    if len(names) != len(file):
        where = ", ".join(map(str, paths))
        raise BadInput(f"{where}: expected {len(file)} names, one a line, found {len(names)}")
    return names


def read_classes(database: Split) -> list[str]:
    """The names of the classes, else their numbers.

    Raises:
        BadInput: the file beside the features has more or fewer than there are.
    """
    n = database.file.labels.shape[1]
    if database.home is None or not (path := database.home / "classes.txt").exists():
        return [f"class {number}" for number in range(n)]
    if len(classes := read_lines(path)) != n:
        raise BadInput(f"{path}: expected {n} classes, one a line, found {len(classes)}")
    return classes
