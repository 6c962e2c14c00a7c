"""Which videos a dataset is made of: a folder of them, or a list with splits and classes.

A list is a CSV file (UTF-8, a header) with the columns ``file`` (relative to the list's folder), and perhaps
``split`` (train, test or query; database is test) and ``class`` (several separated by ``;``; empty: none).
Of a folder, all files below it that end like a video are taken, hidden ones passed over, in the order of
their paths; where it holds them in three folders, train, test and query, and none beside these, they are the
splits. The folders right below it, or right below its splits, are classes if that is asked for.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data import generator
from formats.dataset import SPLITS
from formats.files import BadInput, read_lines, unknown_keys

SUFFIXES = frozenset(
    ".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv".split()
)
# What no line of a file of names can hold: characters that control, and bytes that are no UTF-8. Unlike
# ``isprintable``, it lets the spaces of macOS and of Japanese pass, and emoji of several characters.
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")
COLUMNS = ("file", "split", "class")
SPLIT_NAMES = {*SPLITS, "database", "val", "valid", "validation"}  # folders of these alone are no classes


class Video(NamedTuple):
    """A video of a dataset."""

    file: str  # as it is listed
    path: Path
    name: str  # of its line in the file of names, and of its thumbnail
    split: str  # train, test or query; empty: not said
    classes: tuple[str, ...]


def list_videos(
    source: Path, fractions: tuple[float, ...], seed: int, class_folders: bool = False
) -> tuple[list[Video], str]:
    """The videos of a folder or a list: train, test, query, within them in the order found.

    Args:
        source: the folder or the list.
        fractions: of train, test and query, cut off a permutation where no splits are given.
        seed: of the permutation.
        class_folders: a video's class is the name of its folder, the uppermost below the source or its split.

    Returns:
        The videos, and where their splits and classes are from, in words.

    Raises:
        BadInput: there are none, a line of the list cannot be used, a split has no video, or folders are to
            be classes and there are fewer than two, or a list.
    """
    if class_folders and not source.is_dir():
        raise BadInput(f"{source}: --classes folders is for a folder of videos, a list has a column 'class'")
    videos = read_folder(source) if source.is_dir() else read_list(source)
    if not videos:
        what = f"no video below it (a name ends in {', '.join(sorted(SUFFIXES))})"
        raise BadInput(f"{source}: {what if source.is_dir() else 'lists no video'}")
    class_note = ""
    if source.is_dir():
        videos, class_note = settle_classes(source, videos, class_folders)
    given = f"splits as in {source}"
    if not videos[0].split:
        order = generator(seed, "split").permutation(len(videos))
        ends = [round(len(videos) * sum(fractions[:n])) for n in range(len(SPLITS) + 1)]
        for split, start, end in zip(SPLITS, ends, ends[1:], strict=False):
            for number in order[start:end]:
                videos[number] = videos[number]._replace(split=split)
        given = f"no splits in {source}: drawn at random by {' '.join(map(str, fractions))}, seed {seed}"
    videos.sort(key=lambda video: SPLITS.index(video.split))
    if empty := [split for split in SPLITS if not any(video.split == split for video in videos)]:
        raise BadInput(f"{source}: no video for {', '.join(empty)} among its {len(videos)}")
    return videos, given + class_note


def settle_classes(folder: Path, videos: list[Video], class_folders: bool) -> tuple[list[Video], str]:
    """The videos of a folder with their folders as classes, or without classes, and a word on that.

    Raises:
        BadInput: folders are to be classes, but there are fewer than two, which tell nothing apart, or they
            are splits.
    """
    names = sorted({name for video in videos for name in video.classes})
    some = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    can_be = len(names) > 1 and not {*names} <= SPLIT_NAMES
    if class_folders:
        if not can_be:
            expected = (
                "expected two folders or more right below it or its splits, which are train, test and query"
            )
            raise BadInput(f"{folder}: --classes folders: {expected}, found {some or 'none'}")
        return videos, f"; {len(names)} classes, by folders: {some}"
    hint = f"; no classes; --classes folders would take its {len(names)} folders ({some}) as classes"
    return [video._replace(classes=()) for video in videos], hint * can_be


def read_list(path: Path) -> list[Video]:
    """The videos of a list, in its order.

    Raises:
        BadInput: it cannot be read, or a line, which is named, cannot be used.
    """
    videos, seen = [], {}
    for line, row in read_rows(path):
        where = f"{path}: line {line}: "
        file, split = row["file"], row.get("split", "")
        split = "test" if split == "database" else split
        if not file:
            raise BadInput(f"{where}'file' is empty")
        if "split" in row and split not in SPLITS:
            raise BadInput(f"{where}'split' must be train, test (or database) or query, found '{split}'")
        name = check_name(where, file)
        if (first := seen.setdefault(name, line)) != line:
            raise BadInput(f"{where}{file} stands in line {first} already")
        classes = tuple(
            dict.fromkeys(each.strip() for each in row.get("class", "").split(";") if each.strip())
        )
        if any(map(CONTROL.search, classes)):
            raise BadInput(f"{where}'class' holds characters that cannot be printed: {classes!r}")
        videos.append(Video(file, path.parent / file, name, split, classes))
    return videos


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a list by column, without spaces around, and the line where each ends.

    Raises:
        BadInput: a column is missing or unknown, or a row has more or fewer cells than there are columns.
    """
    rows = csv.reader(io.StringIO("\n".join(read_lines(path)), newline=""), strict=True)
    try:
        columns = [column.strip() for column in next(rows, [])]
        problems = unknown_keys(columns, COLUMNS)
        problems += [f"column '{each}' twice" for each in COLUMNS if columns.count(each) > 1]
        if "file" not in columns or problems:
            expected = "expected a header with 'file', and perhaps 'split' and 'class'"
            raise BadInput(f"{path}: line 1: {'; '.join([expected, *problems])}")
        for row in rows:
            if not row:
                continue  # an empty line
            if len(row) != len(columns):
                raise BadInput(f"{path}: line {rows.line_num}: {len(row)} cells, expected {len(columns)}")
            yield rows.line_num, {key: cell.strip() for key, cell in zip(columns, row, strict=True)}
    except csv.Error as error:
        raise BadInput(f"{path}: line {rows.line_num}: {error}") from None


def read_folder(folder: Path) -> list[Video]:
    """The videos below a folder in the order of their paths; a class is the folder below that or its split.

    Raises:
        BadInput: a folder cannot be read, or a name cannot be used.
    """
    files = sorted(find_files(folder))
    is_split = {file.partition("/")[0] for file in files} == set(SPLITS)
    videos = []
    for file in files:
        *above, _ = file.split("/")
        split = above.pop(0) if is_split else ""
        name = check_name(f"{folder}: ", file)
        videos.append(Video(file, folder / file, name, split, tuple(above[:1])))
    return videos


def find_files(folder: Path) -> Iterable[str]:
    """Paths of all video files below a folder, relative to it; links are followed, no folder twice.

    Raises:
        BadInput: a folder cannot be read: its videos would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise BadInput(f"{error.filename}: cannot be read: {error.strerror}")

    entered = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (real := os.path.realpath(place)) in entered:
            folders.clear()
            continue
        entered.add(real)
        for file in files:
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in SUFFIXES:
                yield Path(place, file).relative_to(folder).as_posix()


def check_name(where: str, file: str) -> str:
    """The name of a listed file: its path without what leads out of a folder (``/`` at the front, ``..``).

    Raises:
        BadInput: the names of videos, one a line, or the thumbnails could not hold it.
    """
    if CONTROL.search(file):
        raise BadInput(f"{where}a file name with characters that cannot be printed: {file!r}")
    parts = [part for part in os.path.normpath(file).split(os.sep) if part not in ("", ".", "..")]
    if not parts or len(os.fsencode(f"{parts[-1]}.jpg")) > 255:
        raise BadInput(f"{where}{'a file name too long for a thumbnail' if parts else 'no file'}: {file}")
    return "/".join(parts)
