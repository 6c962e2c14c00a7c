"""The published tables, and in what a test is unlike the one that a row of them is of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.settings import Settings, fields, recorded, show
from engine.systems import block_names
from formats.files import read_json

PATH = Path(__file__).parents[1] / "Json" / "published.json"
ROUNDING = 0.0005  # of values with three digits


class Published(NamedTuple):
    """A published row."""

    map: dict[int, float]  # mAP@K by K; empty: none is published
    protocol: str | None
    queries: int | None  # None: not known
    videos: int | None  # in the database
    settings: Mapping[str, Any]  # that it was trained with, where they are not the system's defaults


def published_row(system: str, dataset: str, bits: int | None) -> Published:
    """What is published of a system on a dataset at a code length."""
    rows = read_json(PATH).get(system, {}).get(dataset, {})
    values = {int(k): value for k, value in rows.get(str(bits), {}).items()}
    facts = map(rows.get, ("protocol", "queries", "videos"))
    return Published(values, *facts, rows.get("settings", {}))


def other_data(row: Published, n_queries: int, n_videos: int, ceiling: Mapping[int, float]) -> list[str]:
    """What shows that a row is of other data than a test's; ``ceiling`` is the best mAP@K there, by K."""
    reasons = []
    if row.queries not in (None, n_queries) or row.videos not in (None, n_videos):
        sizes = {"queries": row.queries, "videos": row.videos}
        reasons.append(f"of {' and '.join(f'{size} {name}' for name, size in sizes.items() if size)}")
    if above := [f"@{k}" for k in ceiling if row.map.get(k, 0) - ROUNDING > ceiling[k]]:
        reasons.append(f"above the ceiling {' '.join(above)}")
    return reasons


def other_settings(kind: type[Settings], record: Mapping[str, Any], row: Published) -> list[str]:
    """The settings of a training that are not the published ones, with both values.

    Args:
        kind: the system's settings; its defaults are what is published where the row says no more.
        record: the settings of the training, as in a checkpoint.
        row: what is published.
    """
    found = []
    for name in block_names(kind).values():
        item = fields(kind)[name]
        if name in ("hashcode_size", "ks") or item.default is None:  # what is asked of the row; file names
            continue
        then, published = show(recorded(record, name, item)), show(row.settings.get(name, item.default))
        if then != published:
            found.append(f"{name} {then} (published {published})")
    return found
