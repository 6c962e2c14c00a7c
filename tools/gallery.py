"""``python -m tools.gallery LOG --out gallery.html``: queries and their nearest videos, on one page.

In place of a log it takes two files of codes, ``DATABASE.h5 QUERIES.h5``, with or without labels. The page
needs no network and no script: thumbnails are in it (``tools/page.py``). It shows the codes that a test or
``tools.encode`` kept, ranked as a test does: by distance, ties by number. What the videos are called and look
like is found beside their features (``tools/tested.py``) or named by options; else a video has its number.

Axes: Q queries, K neighbours.
"""

import argparse
import math
import sys
from dataclasses import dataclass

import numpy as np

from engine.launch import Parser, exit_status
from formats.files import BadInput, expand, write_whole
from metrics import evaluate, nearest_codes
from tools.page import Card, Row, Section, whole
from tools.tested import Asked, Split, open_asked, open_splits, read_classes

PICKS = {
    "random": "drawn at random (seed {seed}): what to expect",
    "best": "those with the highest AP@{k}, ties by number",
    "worst": "those with the lowest AP@{k}, ties by number",
}
MARKS = {"right": "\u2713", "wrong": "\u2717"}
BLOCK = 1024  # queries whose labels are compared at once


@dataclass(frozen=True)
class Answers:
    """The nearest videos of every query."""

    videos: np.ndarray  # (Q, K) database indices
    distances: np.ndarray  # (Q, K)
    right: np.ndarray | None  # (Q, K) bool: they share a class with the query; None: no labels

    def average_precision(self, k: int) -> np.ndarray:
        """AP@k of every query as of ``metrics.evaluate``, (Q,)."""
        right = self.right[:, :k]
        return (right * right.cumsum(1) / np.arange(1, k + 1)).mean(1)


def main(arguments: list[str]) -> int:
    """Make the page that the command line asks for; the exit status."""
    parser = Parser(prog="python -m tools.gallery", description="Queries and their nearest videos, a page.")
    parser.usage = "%(prog)s (LOG | DATABASE.h5 QUERIES.h5) --out FILE.html [options]"
    parser.add_argument("codes", nargs="+", metavar="LOG | DATABASE.h5 QUERIES.h5",
                        help="log/<n>.jsonl of a test, or two files of codes; the same one twice: each video "
                        "asks and is left out of its own answer")  # fmt: skip
    parser.add_argument("--out", type=expand, required=True, metavar="FILE.html", help="the page")
    parser.add_argument("--queries", type=int, default=4, metavar="N", help="of each kind (default: 4)")
    parser.add_argument("--k", type=int, help="neighbours of a query (default: 10, or all if fewer)")
    parser.add_argument(
        "--pick", help=f"kinds of queries (default: {','.join(PICKS)}; without labels: random)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random queries (default: 0)")
    parser.add_argument("--thumbnails", type=expand, metavar="FOLDER", help="of <name>.jpg")
    parser.add_argument("--database-names", type=expand, metavar="FILE", help="of the videos, one a line")
    parser.add_argument("--query-names", type=expand, metavar="FILE", help="likewise")
    return exit_status(lambda: make(parser.parse_args(arguments)))


def make(options: argparse.Namespace) -> None:
    """Read codes and the result of their test, if any, rank, and write the page, whole or not at all.

    Raises:
        BadInput: log, codes, names or an option cannot be used.
    """
    picks = options.pick.split(",") if options.pick is not None else []
    if unknown := [pick for pick in picks if pick not in PICKS]:
        raise BadInput(f"--pick: expected some of {','.join(PICKS)}, found '{unknown[0]}'")
    for name, least in (("queries", 1), ("seed", 0)):
        if (found := getattr(options, name)) < least:
            raise BadInput(f"--{name}: expected {least} or more, found {found}")
    asked = open_asked(options.codes)
    if not asked.labelled and (ordered := [pick for pick in picks if pick != "random"]):
        raise BadInput(f"--pick: '{ordered[0]}' needs labels, which tell right from wrong; expected random")
    database, query = open_splits(asked, options.thumbnails, options.database_names, options.query_names)
    most = len(database.file) - bool(asked.result.get("exclude_self"))
    k = min(10, most) if options.k is None else options.k
    if not 1 <= k <= most:
        raise BadInput(f"--k: expected 1 to {most}, the videos of {database.file.path}, found {k}")
    gallery = Gallery(asked, database, query, k)
    picks = picks or (PICKS if asked.labelled else ["random"])
    if len(picks) > 1 and options.queries * len(picks) >= len(query.file):
        sections = [gallery.all_queries()]
    else:
        sections = [gallery.section(pick, options.queries, options.seed) for pick in picks]
    text = whole(gallery.title, gallery.facts(), gallery.numbers(), gallery.legend(), sections)
    write_whole(options.out, lambda path: path.write_text(text, encoding="utf-8"))
    rows = [row for section in sections for row in section.rows]
    cards = [card for row in rows for card in row.cards]
    bare = sum(card.picture is None for card in cards)
    pictures = f"{bare} of these without a thumbnail" if bare else "each a thumbnail"
    print(f"{options.out}: {len(rows)} rows of {k + 1} pictures, {pictures}, {len(text) / 1e6:.2f} MB")


def rank(database: Split, query: Split, k: int, exclude_self: bool) -> Answers:
    """The K nearest videos of every query, ties by number.

    Args:
        database: the videos.
        query: who asks.
        k: how many.
        exclude_self: query i is video i, and is left out.
    """
    found = nearest_codes(query.file.exact(), database.file.exact(), k + exclude_self)
    videos, distances = (each.numpy() for each in found)
    if exclude_self:  # out with the query itself, or, where ties keep it away, with the last one
        others = videos != np.arange(len(videos))[:, None]
        others[others.all(1), -1] = False
        videos, distances = (each[others].reshape(-1, k) for each in (videos, distances))
    if database.file.labels is None or query.file.labels is None:
        return Answers(videos, distances, None)
    right = np.empty(videos.shape, bool)
    for start in range(0, len(videos), BLOCK):
        rows = slice(start, start + BLOCK)
        shared = query.file.labels[rows, None] & database.file.labels[videos[rows]]  # (q, K, num_class)
        right[rows] = shared.any(-1)
    return Answers(videos, distances, right)


class Gallery:
    """What a page says of the answers to the queries.

    Args:
        asked: the codes, and what is known of them.
        database: what was searched.
        query: who asked.
        k: neighbours to show.

    Raises:
        BadInput: the codes are not those of the log, or the classes cannot be read.
    """

    def __init__(self, asked: Asked, database: Split, query: Split, k: int):
        self.asked, self.database, self.query, self.k = asked, database, query, k
        self.exclude_self, self.same = bool(asked.result.get("exclude_self")), asked.same
        self.map = asked.result.get("mAP", {})  # of the log
        cut = min(map(int, self.map), default=k)
        self.answers = rank(database, query, max(k, cut), self.exclude_self)
        if not asked.labelled:
            return
        self.classes = read_classes(database.file)
        self.quality = self.answers.average_precision(k)  # (Q,)
        if not self.map:
            return
        found, said = mean(self.answers.average_precision(cut)), self.map[str(cut)]
        if not abs(found - said) <= 1e-9:  # so written, NaN is refused
            other = f"these codes have {found:.6f}, {asked.log} says {said:.6f}"
            raise BadInput(f"{database.file.path}: not the codes of this test, mAP@{cut} of {other}")

    @property
    def title(self) -> str:
        """Of the page."""
        result = self.asked.result
        of = [result.get("method") or result.get("system") or "codes", result.get("dataset")]
        return f"Nearest videos: {', '.join(filter(None, of))}, {result['bits']} bits"

    def facts(self) -> list[str]:
        """What was run."""
        result, n = self.asked.result, len(self.query.file)
        asked = f"{n} queries" if not self.same else "every one of them is a query"
        left_out = ", and is left out of its own answer" if self.exclude_self else ""
        what = f"{result.get('origin')}; {len(self.database.file)} videos in the database, {asked}{left_out}"
        if self.asked.log:
            return [f"{what}. Log: {self.asked.log}, {result.get('time')}."]
        asking = "" if self.same else f" and {self.query.file.path}"
        return [f"{what}. Codes: {self.database.file.path}{asking}."]

    def numbers(self) -> list[list[str]]:
        """The table of the log, and mAP at the cut of the page; empty without labels."""
        if not self.asked.labelled:
            return []
        result = self.asked.result
        ks = sorted({*map(int, self.map), self.k})
        rows = {"mAP@K": {**self.map, str(self.k): mean(self.quality)}}
        codes = (split.file.exact() for split in (self.query, self.database))
        labels = (split.file.labels for split in (self.query, self.database))
        here = evaluate(*codes, *labels, [self.k], self.exclude_self, whole=False)
        rows |= {name: {**result.get(name, {}), str(self.k): getattr(here, name)[self.k]}
                 for name in ("ceiling", "chance")}  # fmt: skip
        cells = [[name, *(f"{row[str(k)]:.3f}" if str(k) in row else "-" for k in ks)]
                 for name, row in rows.items()]  # fmt: skip
        return [["", *(f"@{k}" for k in ks)], *cells]

    def legend(self) -> list[str]:
        """How to read it."""
        bits = self.asked.result["bits"]
        items = [
            f"A row is a query (double frame), then its {self.k} nearest videos, each with its rank and its "
            f"distance: in how many of {bits} bits its code differs. Equal distances go by number.",
        ]
        if not self.asked.labelled:
            lacking = [
                str(split.file.path) for split in (self.database, self.query) if split.file.labels is None
            ]
            return [*items, f"No labels in {' and '.join(dict.fromkeys(lacking))}, so no marks and no mAP."]
        items += [
            "\u2713 right (solid frame): shares a class with the query. \u2717 wrong (dashed): shares none.",
            f"AP@{self.k} is 1 where all {self.k} are right, and the higher the nearer the right ones stand; "
            f"mAP@{self.k} is its mean over all queries.",
        ]
        items.append("Ceiling: mAP of a perfect ranking, below 1 where a class has fewer than K videos. "
                     "Chance: of a random one.")  # fmt: skip
        if self.same and not self.exclude_self:
            items.append("The database asks: a query finds itself, which counts as right, as published.")
        return items

    def section(self, pick: str, n: int, seed: int) -> Section:
        """At most n queries of a kind."""
        total = len(self.query.file)
        n = min(n, total)
        if pick == "random":
            queries = np.sort(np.random.default_rng(seed).choice(total, n, replace=False))
        else:
            queries = np.argsort(-self.quality if pick == "best" else self.quality, kind="stable")[:n]
        text = f"{n} of {total} queries, {PICKS[pick].format(seed=seed, k=self.k)}."
        return Section(f"{pick.capitalize()} queries", text, [self.row(query) for query in queries.tolist()])

    def all_queries(self) -> Section:
        """Every query once, where they are too few to be picked from."""
        text = f"All {len(self.query.file)} queries, each once, from the highest AP@{self.k} to the lowest."
        order = np.argsort(-self.quality, kind="stable")
        return Section("All queries, best first", text, [self.row(query) for query in order.tolist()])

    def row(self, query: int) -> Row:
        """A query and its neighbours."""
        cards = [self.card(self.query, query, "query", "query", "")]
        for rank, video in enumerate(self.answers.videos[query, : self.k].tolist()):
            place = f"{rank + 1}. {self.answers.distances[query, rank]:g} bits"
            if not self.asked.labelled:
                cards.append(self.card(self.database, video, "found", place, ""))
                continue
            kind = "right" if self.answers.right[query, rank] else "wrong"
            itself = " (the query itself)" if self.same and video == query else ""
            cards.append(self.card(self.database, video, kind, f"{MARKS[kind]} {kind}{itself}", place))
        return Row(self.row_title(query), cards)

    def row_title(self, query: int) -> str:
        """The classes of a query and how good its answer is; without labels its name."""
        if not self.asked.labelled:
            return self.query.name(query)
        label, right = self.query.file.labels[query], self.answers.right[query, : self.k]
        relevant = int((self.database.file.labels & label).any(1).sum()) - (self.exclude_self and label.any())
        return (
            f"{self.class_names(self.query, query)}: {right.sum()} of {self.k} right "
            f"(the database has {relevant or 'none'}), "
            f"AP@{self.k} {self.quality[query]:.3f} of at most {min(relevant, self.k) / self.k:.3f}"
        )

    def card(self, split: Split, video: int, kind: str, mark: str, place: str) -> Card:
        """A video of a row."""
        return Card(
            kind, mark, place, self.class_names(split, video), split.name(video), split.thumbnail(video)
        )

    def class_names(self, split: Split, video: int) -> str:
        """The classes of a video in words; empty without labels."""
        if not self.asked.labelled:
            return ""
        numbers = np.flatnonzero(split.file.labels[video])
        return ", ".join(self.classes[number] for number in numbers) or "no class"


def mean(values: np.ndarray) -> float:
    """As ``metrics`` takes it: rounded once."""
    return math.fsum(values.tolist()) / len(values)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
