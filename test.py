"""Stage 3: encode database and queries, rank by Hamming distance, print mAP@K beside the published row.

(The file shadows CPython's own ``test`` package, which nothing here needs; the name is the published one.)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import model
from data import BadInput, FeatureStore, load_labels, open_store, read_json
from engine.checkpoint import find_weights, load_weights
from engine.device import environment, open_device
from engine.loop import encode
from engine.runs import Run
from engine.settings import Settings
from metrics import Evaluation, evaluate
from pretrain import fresh_network

KS = (5, 20, 40, 60, 80, 100)
STARTS_FROM = ("train", "pretrain")
PUBLISHED = Path(__file__).parent / "Json" / "published.json"


class Splits(NamedTuple):
    """Database and queries."""

    database: FeatureStore
    query: FeatureStore
    database_labels: np.ndarray  # (N, num_class)
    query_labels: np.ndarray  # (Q, num_class)


def train_model(
    settings: Settings, run: Run, weights: Mapping[str, Path | None] | None = None
) -> dict[int, float]:
    """Test one network, or several beside each other.

    Args:
        settings: of the run.
        run: where to log.
        weights: checkpoints by the name of their row, the one to judge first; None as a checkpoint: a network
            as it is before training. None: what ``weight_path`` says.

    Returns:
        mAP@K of the first one by K.

    Raises:
        BadInput: a split, its labels or a checkpoint cannot be used.
    """
    if run.is_done():
        return {}
    device, config = open_device(settings), settings.config
    splits = open_splits(settings)
    weights = weights or {"mAP@K": find_weights(settings, STARTS_FROM)}
    nets = {
        name: load_weights(path, settings, config, STARTS_FROM, model).net
        if path
        else fresh_network(settings, config.feature_size)
        for name, path in weights.items()
    }
    run.start(**environment(device), weights={name: str(path) for name, path in weights.items() if path})
    for name, path in weights.items():
        run.say(f"{name}: {path or 'initial weights'}")
    return score(settings, run, splits, nets, KS, "WSCH")


def open_splits(settings: Settings, memory: str | None = None, ks: tuple[int, ...] = KS) -> Splits:
    """Open database and queries with their labels.

    Raises:
        BadInput: a file cannot be used, or the database is smaller than the largest K.
    """
    config = settings.config
    memory = memory or settings.memory
    database = open_store(config, config.test, memory, "cpu")
    labels = load_labels(config, config.test, len(database))
    if len(database) < max(ks):
        raise BadInput(
            f"{config.path}: mAP@{max(ks)} needs a database of {max(ks)} videos, found {len(database)}"
        )
    if config.query_is_database:
        return Splits(database, database, labels, labels)
    query = open_store(config, config.query, memory, "cpu")
    return Splits(database, query, labels, load_labels(config, config.query, len(query)))


def score(
    settings: Settings,
    run: Run,
    splits: Splits,
    nets: Mapping[str, nn.Module],
    ks: tuple[int, ...],
    system: str,
) -> dict[int, float]:
    """Encode with every network, rank, print the table and log the result of the first one.

    Returns:
        mAP@K of the first network by K.
    """
    device, config = open_device(settings), settings.config
    rows: dict[str, Mapping[int, float]] = {}
    results: dict[str, Evaluation] = {}
    zeros = 0
    for name, net in nets.items():
        net.bfloat16 = settings.precision == "bfloat16"
        net.to(device).eval()
        database = codes_of(net, splits.database, device, settings, f"{name}: database")
        same = splits.query is splits.database
        query = database if same else codes_of(net, splits.query, device, settings, f"{name}: queries")
        if not results:
            zeros = int((database == 0).sum()) + (0 if same else int((query == 0).sum()))
        results[name] = found = evaluate(
            query, database, torch.from_numpy(splits.query_labels), torch.from_numpy(splits.database_labels), ks,
            progress=True,
        )  # fmt: skip
        rows[name] = found.map
        if len(results) == 1:
            rows |= {"  ties averaged": found.tie_averaged_map, "  precision@K": found.precision,
                     "  recall@K": found.recall}  # fmt: skip
    first, *others = results
    rows["chance"] = results[first].chance
    bits = next(iter(nets.values())).sizes["hashcode_size"]
    published = published_row(system, config.dataset, bits)
    if published:
        rows[f"published {system}"] = published
    run.event(
        "result", stage=run.stage, dataset=config.dataset, bits=bits,
        **{key: by_k(value) for key, value in as_events(results[first]).items()},
        others={name: by_k(results[name].map) for name in others}, published=by_k(published),
        zero_code_entries=zeros, database=len(splits.database), queries=len(splits.query),
    )  # fmt: skip
    run.say(
        table(
            f"{config.dataset}, {bits} bits, {len(splits.query)} queries, {len(splits.database)} videos",
            rows,
            ks,
        )
    )
    if zeros:
        run.say(f"{zeros} code entries are 0 (frames in a tie); each counts half a bit")
    run.end()
    return results[first].map


def codes_of(
    net: nn.Module, store: FeatureStore, device: torch.device, settings: Settings, description: str
) -> Tensor:
    """Codes of all videos of a store, (N, b) int8 in {-1, 0, +1}."""
    return encode(store, lambda frames, _: net.hash(frames).char(), device, settings, description)


def as_events(found: Evaluation) -> dict[str, Mapping[int, float]]:
    """The metrics by their names in the log."""
    return {"mAP": found.map, "mAP_tie_expected": found.tie_averaged_map, "precision": found.precision,
            "recall": found.recall, "chance": found.chance}  # fmt: skip


def by_k(values: Mapping[int, float]) -> dict[str, float]:
    """Numbers by K with keys as JSON has them."""
    return {str(k): value for k, value in values.items()}


def published_row(system: str, dataset: str, bits: int) -> dict[int, float]:
    """The published mAP@K of a system by K; empty where there is none."""
    rows = read_json(PUBLISHED)[system].get(dataset, {})
    return {int(k): value for k, value in rows.get(str(bits), {}).items()}


def table(title: str, rows: Mapping[str, Mapping[int, float]], ks: tuple[int, ...]) -> str:
    """Rows of numbers by K as text."""
    width = max(map(len, rows)) + 2
    lines = [title, "mAP@K".ljust(width) + "".join(f"@{k}".rjust(8) for k in ks)]
    for name, row in rows.items():
        lines.append(name.ljust(width) + "".join((f"{row[k]:.4f}" if k in row else "-").rjust(8) for k in ks))
    return "\n".join(lines)
