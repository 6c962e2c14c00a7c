"""What there is to look at: codes, the result of the test that ranked them, and the videos' names.

A test keeps codes with their labels (``result/<n>_test.h5`` and ``..._query.h5``). Files of
``tools.encode`` have no result, and labels where their dataset has. What the videos are called and look like
is found beside their features, ``F/test_feats.h5``: ``F/test_names.txt`` (line i is video i),
``F/thumbnails/<name>.jpg`` and ``F/classes.txt`` (line c is class c), likewise of the queries.

Axes: N videos, b bits.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from formats.codefile import CodeFile, read_attributes, read_code_file
from formats.files import BadInput, expand, read_lines
from tools.logs import Log, no_result, read_logs
from tools.names import feature_files, read_names
from tools.search import check_pair


@dataclass(frozen=True)
class Asked:
    """Codes of a database and of its queries, as a test ranked them, or as they are to be ranked."""

    database: CodeFile
    query: CodeFile
    result: dict[str, Any]  # event of the test; without one: bits, exclude_self, origin and system
    log: Path | None = None  # of the test

    @property
    def labelled(self) -> bool:
        """Whether right can be told from wrong."""
        return self.database.labels is not None and self.query.labels is not None

    @property
    def same(self) -> bool:
        """Whether the database itself asks."""
        return self.database.path.samefile(self.query.path)


@dataclass(frozen=True)
class Split:
    """Database or queries: their codes, and what is known of the videos."""

    file: CodeFile
    names: list[str] | None
    thumbnails: Path | None  # the folder of these

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
    """The one log with a result, and codes.

    Raises:
        BadInput: there is none, or more than one, or it kept no codes.
    """
    read = read_logs([name])
    logs = [log for log in read if log.result is not None]
    if len(logs) != 1:
        found = f"{len(logs)} logs with a result, name one of them" if logs else no_result(read)
        raise BadInput(f"{name}: {found}")
    if reason := lacking(logs[0], "codes"):
        raise BadInput(f"{logs[0].path}: {reason}")
    return logs[0]


def lacking(log: Log, key: str) -> str:
    """Why a log has no ``by_radius`` or ``codes`` of a test; empty: it has."""
    if not log.result:
        return "no result, as of trainings, extractions and what has not ended"
    if log.result.get(key):
        return ""
    if log.result.get("bits") is None:
        return "real values, no codes (--method lsh, pca or itq)"
    return f"no '{key}', as before version 1.2; test again, with --weight_path"


def read_codes(log: Log, key: str) -> CodeFile:
    """The codes of ``database`` or ``query`` that a test ranked and kept.

    Raises:
        BadInput: the file is missing or damaged.
    """
    path = expand(log.result["codes"][key])
    if not path.exists():
        raise BadInput(f"{path}: no such file of codes; {log.path} names it, from where its test ran")
    return read_code_file(path)


def open_asked(names: Sequence[str]) -> Asked:
    """The codes of a test, named by its log, or of two files, database and queries.

    Of one file given twice, every video asks and is left out of its own answer: it would come first.

    Raises:
        BadInput: a file is missing or damaged, the two do not fit, or those of a test have no labels.
    """
    if len(names) == 1 and not names[0].endswith(".h5"):
        log = find_result(names[0])
        asked = Asked(read_codes(log, "database"), read_codes(log, "query"), log.result, log.path)
        if unlabelled := [file for file in (asked.database, asked.query) if file.labels is None]:
            raise BadInput(f"{unlabelled[0].path}: no labels, which tell right from wrong")
    elif len(names) == 2:
        database, query = (read_code_file(expand(name)) for name in names)
        said = read_attributes(database.path)
        asked = Asked(database, query, {
            "system": said["system"],
            "origin": said["dataset"] or "a network that says nothing of its training",
            "bits": database.bits,
            "exclude_self": database.path.samefile(query.path),
        })  # fmt: skip
    else:
        raise BadInput(f"expected a log, or two files of codes (database, queries), found {' '.join(names)}")
    check_pair(asked.database, asked.query)
    if asked.labelled and (n := asked.query.labels.shape[1]) != asked.database.labels.shape[1]:
        path, found = asked.database.path, asked.database.labels.shape[1]
        raise BadInput(f"{asked.query.path}: {n} classes, {path} has {found}")
    return asked


def open_splits(
    asked: Asked, thumbnails: Path | None, database_names: Path | None, query_names: Path | None
) -> tuple[Split, Split]:
    """Database and queries, with what is known of their videos.

    Args:
        asked: their codes.
        thumbnails: folder of them; None: beside the features.
        database_names: file of the names of the database's videos; None: beside their features.
        query_names: likewise.

    Raises:
        BadInput: a file is missing or damaged, or does not fit.
    """
    splits = []
    for file, names in ((asked.database, database_names), (asked.query, query_names)):
        sources = feature_files(file.path)
        folder = thumbnails or (sources[0].with_name("thumbnails") if sources else None)
        splits.append(Split(file, read_names(file, names), folder))
    return splits[0], splits[1]


def read_classes(database: CodeFile) -> list[str]:
    """The names of the classes, from beside the features, else their numbers.

    Raises:
        BadInput: the file of names has more or fewer than there are.
    """
    n, sources = database.labels.shape[1], feature_files(database.path)
    if not sources or not (path := sources[0].with_name("classes.txt")).exists():
        return [f"class {number}" for number in range(n)]
    if len(classes := read_lines(path)) != n:
        raise BadInput(f"{path}: expected {n} classes, one a line, found {len(classes)}")
    return [f"class {name}" if name.isdecimal() else name for name in classes]  # a number alone says nothing
