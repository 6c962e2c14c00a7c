"""What a test leaves: the table on the terminal, a ``result`` in the log, and files in ``result_dir``.

``result/<n>.json`` is the log's event, indented; ``result/<n>_test.h5`` and ``result/<n>_query.h5`` are the
codes that were judged (``formats/codefile.py``; one file if the database queries itself).
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data import FeatureStore
from engine import ranks
from engine.published import Published, other_data, other_settings, published_row
from engine.runs import Run
from engine.settings import RankingSettings
from formats.bits import count_distinct
from formats.codefile import as_records, write_code_file
from formats.files import BadInput, expand, read_json, write_whole
from metrics import Evaluation

FEW = 100  # queries or videos: of fewer, a single one can move a mean by more than 0.01


class Splits(NamedTuple):
    """Database and queries."""

    database: FeatureStore
    query: FeatureStore  # the same object if the database queries itself
    database_labels: np.ndarray  # (N, num_class)
    query_labels: np.ndarray  # (Q, num_class)
    notes: list[str]  # what the user should know of them

    @property
    def labels(self) -> tuple[Tensor, Tensor]:
        """Labels of queries and of database, as ``metrics.evaluate`` takes them."""
        return torch.from_numpy(self.query_labels), torch.from_numpy(self.database_labels)


class Codes(NamedTuple):
    """Hash codes of both splits, and whose they are."""

    database: Tensor  # (N, b) int8 in {-1, 0, +1}
    query: Tensor  # (Q, b) likewise; the same object if the database queries itself
    digest: str  # of the network

    @property
    def zeros(self) -> int:
        """How many of their entries are 0."""
        return sum(int((codes == 0).sum()) for codes in {id(codes): codes for codes in self[:2]}.values())


class Result(NamedTuple):
    """What a test found of one kind of codes, or of real values."""

    metrics: Evaluation
    codes: Codes | None = None  # None: real values


@ranks.on_first
def report(
    system: str,
    run: Run,
    splits: Splits,
    results: Mapping[str, Result],
    origin: str,
    trained_with: Mapping[str, Any] | None = None,
    **facts: Any,
) -> dict[int, float]:
    """Write codes and numbers of a test down, print its table beside the published row, and end the run.

    Args:
        system: as in Json/published.json.
        run: where to log.
        splits: what was ranked.
        results: by the name of their row, the one to judge first; of the others mAP@K alone is shown.
        origin: what the first one is, for the title.
        trained_with: its settings; None: not known.
        facts: what else the log should say of it.

    Returns:
        mAP@K of the first one by K.

    Raises:
        BadInput: a file cannot be written, or one of another run with the same number is in its place.
    """
    path = result_path(run, ".json")
    if path.exists() and read_json(path).get("launch") != run.launch.id:
        raise BadInput(f"{path}: of another run with the same number; move it away, then resume")
    for note in {store.padding for store in (splits.database, splits.query) if store.padding}:
        run.say(note)
    settings, config = run.settings, run.settings.config
    first, *others = results
    judged, codes = results[first]
    bits = codes.database.shape[1] if codes else None
    zeros, distinct = (codes.zeros, count_distinct(codes.database)) if codes else (0, None)
    published = published_row(system, config.dataset, bits)
    comparable = published.protocol == config.protocol and not settings.exclude_self
    if codes:
        facts |= {
            "precision_radius_2": judged.precision_radius_2,
            "by_radius": asdict(judged.by_radius),
            "codes": write_codes(run, splits, codes, {"system": system, "dataset": origin}),
        }
    event = run.event(
        "result",
        stage=run.stage,
        launch=run.launch.id,
        system=system,
        dataset=config.dataset,
        bits=bits,
        precision_setting=settings.precision,
        protocol=config.protocol,
        exclude_self=settings.exclude_self,
        origin=origin,
        mAP=judged.map,
        mAP_tie_expected=judged.tie_averaged_map,
        mAP_relevant=judged.map_relevant,
        mAP_retrieved=judged.map_retrieved,
        precision=judged.precision,
        recall=judged.recall,
        ceiling=judged.ceiling,
        chance=judged.chance,
        mAP_whole=judged.map_whole,
        published=published.map if comparable else {},
        others={name: results[name].metrics.map for name in others},
        zero_code_entries=zeros,
        distinct_codes=distinct,
        database=len(splits.database),
        queries=len(splits.query),
        **facts,
    )
    text = json.dumps(event, indent=2) + "\n"
    write_whole(path, lambda path: path.write_text(text, encoding="utf-8"))
    rows = {
        first: judged.map,
        "  ties averaged": judged.tie_averaged_map,
        "  precision@K": judged.precision,
        "  recall@K": judged.recall,
        **{name: results[name].metrics.map for name in others},
        "chance": judged.chance,
        "ceiling": judged.ceiling,
    }
    who = "the database itself" if config.query_is_database else f"{len(splits.query)} queries"
    who += " (no video in its own ranking)" if settings.exclude_self else ""
    kind = f"{bits} bits" if codes else "real values"
    title = f"{config.dataset}, {kind}, {who}, {len(splits.database)} videos; {first}: {origin}"
    shown = {f"published {system}": published.map} if published.map and comparable else {}
    run.say(table(title, rows, settings.ks, shown))
    for remark in remarks(system, published, settings, splits, judged.ceiling, trained_with):
        run.say(remark)
    run.say(f"mAP over the whole ranking, ties averaged: {judged.map_whole:.4f}")
    if codes:
        run.say(f"precision within Hamming radius 2: {judged.precision_radius_2:.4f}")
        run.say(f"{distinct} distinct codes among the {len(splits.database)} of the database")
    if zeros:
        run.say(f"{zeros} code entries are 0 (frames in a tie); each counts half a bit")
    if codes:
        run.say(what_next([str(run.jsonl)], list(facts["codes"].values())))
    run.end()
    return judged.map


def remarks(
    system: str,
    published: Published,
    settings: RankingSettings,
    splits: Splits,
    ceiling: Mapping[int, float],
    trained_with: Mapping[str, Any] | None,
) -> Iterator[str]:
    """Lines under a table that keep its numbers from being taken for more than they are."""
    n_queries, n_videos, protocol = len(splits.query), len(splits.database), settings.config.protocol
    if min(ceiling.values()) < 1:
        yield "ceiling: mAP@K of a perfect ranking; below 1 where a query has fewer than K relevant videos"
    if min(n_queries, n_videos) < FEW:
        found = f"{n_queries} queries and {n_videos} videos are few"
        yield f"{found}: such numbers are mostly luck, compare several seeds"
    if protocol == "database" and not settings.exclude_self:
        yield "every query finds itself, first: codes that know nothing reach about 1/K above chance"
    if not published.map:
        return
    if published.protocol != protocol:
        how = "every database video queries" if protocol == "query" else "the query file queries"
        cure = f"--protocol {published.protocol} compares with it"
        yield f"published {system}: not shown, as there {how}; {cure}"
    elif settings.exclude_self:
        how = "a video stays in its own ranking; --exclude_self false compares with it"
        yield f"published {system}: not shown, as there {how}"
    else:
        if reasons := other_data(published, n_queries, n_videos, ceiling):
            yield f"published {system}: not comparable: {', '.join(reasons)}"
        if trained_with and (changed := other_settings(type(settings), trained_with, published)):
            yield f"not the published settings: {', '.join(changed)}"


def result_path(run: Run, ending: str) -> Path:
    """A file of a run in ``result_dir``."""
    return expand(run.settings.result_dir) / f"{run.number}{ending}"


def what_next(shown: Sequence[str], codes: Sequence[str]) -> str:
    """The commands that show what codes find: a page, and a list.

    Args:
        shown: what the page is of: the log of a test, or the codes.
        codes: the files of database and queries.
    """
    return (f"next: python -m tools.gallery {shlex.join(shown)} --out gallery.html\n"
            f"      python -m tools.search {shlex.join(codes)} --out near.csv")  # fmt: skip


def write_codes(run: Run, splits: Splits, codes: Codes, whose: Mapping[str, str]) -> dict[str, str]:
    """Write the codes of both splits; their files by ``database`` and ``query``.

    Raises:
        BadInput: a file cannot be written.
    """
    settings = json.dumps({key: run.settings.get(key) for key in ("precision", "batch_size")})
    files = {}
    for name, ending in (("database", "_test.h5"), ("query", "_query.h5")):
        store = getattr(splits, name)
        if name == "query" and store is splits.database:
            return files | {"query": files["database"]}
        said = {
            **whose,
            "digest": codes.digest,
            "settings": settings,
            "sources": json.dumps([str(path) for path in store.paths]),
            "features": store.facts["digest"],
        }
        path, values = result_path(run, ending), getattr(codes, name)
        labels = getattr(splits, f"{name}_labels")
        write_code_file(path, as_records(values), values.shape[1], labels, said)
        files[name] = str(path)
    return files


def table(
    title: str,
    rows: Mapping[str, Mapping[int, float]],
    ks: tuple[int, ...],
    published: Mapping[str, Mapping[int, float]],
) -> str:
    """Rows of numbers by K as text; the published ones, below them, with the three digits they have."""
    width = max(map(len, rows | published)) + 2
    lines = [title, "mAP@K".ljust(width) + "".join(f"@{k}".rjust(8) for k in ks)]
    for group, kind in ((rows, ".4f"), (published, ".3f")):
        for name, row in group.items():
            numbers = (format(row[k], kind).ljust(6) if k in row else "-" for k in ks)
            lines.append(name.ljust(width) + "".join(map("{:>8}".format, numbers)).rstrip())
    return "\n".join(lines)
