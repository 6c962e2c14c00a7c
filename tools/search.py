"""``python -m tools.search DATABASE.h5 QUERIES.h5``: the nearest videos of every query, as CSV.

Both files are of the stage ``tools.encode``, or what a test left. What searches them stands in
``tools/indexes.py``, what finds the names of the videos in ``tools/names.py``.
"""

import argparse
import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.launch import Parser, exit_status
from formats.codefile import CodeFile, read_code_file
from formats.files import BadInput, expand, progress, write_whole
from tools.indexes import ANSWERS, INDEXES, Search
from tools.names import read_names

QUERIES = 1024  # at a time, at most


def main(arguments: list[str]) -> int:
    """Search as the command line says; the exit status."""
    parser = Parser(prog="python -m tools.search", description="The nearest videos of every query, as CSV.")
    parser.add_argument("database", type=expand, metavar="DATABASE.h5", help="codes to search among")
    parser.add_argument("queries", type=expand, metavar="QUERIES.h5", help="codes to search for")
    parser.add_argument("--k", type=int, help="neighbours of each query (default: 10, or all if fewer)")
    parser.add_argument("--out", type=expand, help="CSV file (default: the terminal)")
    parser.add_argument("--index", choices=INDEXES, default="exact",
                        help="what searches (default: exact); hnsw and ivf are approximate, for large sets, "
                        "and kept beside the database; lance is exact, in a table at --uri")  # fmt: skip
    parser.add_argument("--uri", help="with --index lance: folder or object store (s3://...) of the table")
    parser.add_argument("--video-names", type=expand, metavar="FILE",
                        help="text file with the names of the database's videos, one a line (default: "
                        "<split>_names.txt beside their features, if there)")  # fmt: skip
    parser.add_argument("--query-names", type=expand, metavar="FILE", help="likewise of the queries")
    parser.add_argument("--force", action="store_true", help="search also among codes of another network")
    return exit_status(lambda: search(parser.parse_args(arguments)))


def search(options: argparse.Namespace) -> None:
    """Read both files, search, and write the neighbours, whole or not at all.

    Raises:
        BadInput: a file or an option cannot be used, or a package is missing.
    """
    database, queries = read_code_file(options.database), read_code_file(options.queries)
    check_pair(database, queries, options.force, "; --force searches all the same")
    k = min(10, len(database)) if options.k is None else options.k
    if not 1 <= k <= len(database):
        raise BadInput(f"--k: expected 1 to {len(database)}, the size of {database.path}, found {k}")
    if (options.index == "lance") != bool(options.uri):
        raise BadInput("--uri: expected with --index lance, and only there")
    video_names = read_names(database, options.video_names)
    query_names = read_names(queries, options.query_names)
    where = (options.uri, video_names) if options.index == "lance" else ()
    index = INDEXES[options.index](database, k, *where)
    rows = neighbours(database, queries, index, k, video_names, query_names)
    if options.out is None:
        try:
            csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has seen enough, also of what is flushed at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return

    def write(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    write_whole(options.out, write)
    zeros = int(database.zeros.sum(dtype=np.int64) + queries.zeros.sum(dtype=np.int64))
    ties = f"; {zeros} code entries were 0 (frames in a tie) and count as +1" if zeros else ""
    said = f"{k} neighbours of {len(queries)} queries among {len(database)} videos"
    print(f"{options.out}: {said}{ties}")


def check_pair(database: CodeFile, queries: CodeFile, force: bool = False, cure: str = "") -> None:
    """See that two files of codes can be compared.

    Args:
        database: one of them.
        queries: the other.
        force: whether the user insists on comparing codes of two networks.
        cure: how to insist, to put behind the error.

    Raises:
        BadInput: they have other lengths, or are of other networks and the user does not insist.
    """
    if database.bits != queries.bits:
        found = f"those of {database.path} have {database.bits}"
        raise BadInput(f"{queries.path}: codes of {queries.bits} bits, {found}")
    if database.digest != queries.digest and not force:
        raise BadInput(f"{queries.path}: codes of another network than those of {database.path}{cure}")


def neighbours(
    database: CodeFile,
    queries: CodeFile,
    search: Search,
    k: int,
    video_names: list[str] | None,
    query_names: list[str] | None,
) -> Iterator[list]:
    """The lines of the CSV: a header, then k neighbours of every query."""
    labelled = database.labels is not None and queries.labels is not None
    yield ["query", "rank", "video", "distance", *(["name"] if video_names else []),
           *(["query_labels", "video_labels"] if labelled else []),
           *(["query_name"] if query_names else [])]  # fmt: skip
    size = max(1, min(QUERIES, ANSWERS // k))
    for start in progress(range(0, len(queries), size), "searching"):
        videos, distances = search(queries.codes[start : start + size])
        for row, (found, away) in enumerate(zip(videos.tolist(), distances.tolist(), strict=True), start):
            for rank, (video, distance) in enumerate(zip(found, away, strict=True), 1):
                line = [row, rank, video, int(distance)]
                if video_names:
                    line.append(video_names[video])
                if labelled:
                    line += [classes(queries.labels[row]), classes(database.labels[video])]
                if query_names:
                    line.append(query_names[row])
                yield line


def classes(label: np.ndarray) -> str:
    """The class numbers of a video, from 0, joined by semicolons."""
    return ";".join(map(str, np.flatnonzero(label)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
