"""The test of every system: encode database and queries, rank, print the table beside the published row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data import FeatureStore, open_store
from engine.checkpoint import find_weights, load_weights
from engine.device import check_stop, environment, open_device
from engine.feed import encode
from engine.runs import Run
from engine.settings import Settings
from engine.systems import System
from formats.bits import count_distinct
from formats.files import BadInput, read_json
from formats.labels import load_labels
from metrics import Evaluation, evaluate

PUBLISHED = Path(__file__).parents[1] / "Json" / "published.json"


class Splits(NamedTuple):
    """Database and queries."""

    database: FeatureStore
    query: FeatureStore
    database_labels: np.ndarray  # (N, num_class)
    query_labels: np.ndarray  # (Q, num_class)
    notes: list[str]  # what the user should know of them


class Result(NamedTuple):
    """What a test found of one kind of codes, or of real values."""

    metrics: Evaluation
    bits: int | None = None  # None: real values
    zeros: int = 0  # entries of its codes that are 0
    distinct: int | None = None  # codes in the database


def open_splits(settings: Settings, memory: str | None = None) -> Splits:
    """Open database and queries with their labels.

    Raises:
        BadInput: a file cannot be used, or the database is smaller than the largest K.
    """
    config = settings.config
    memory = memory or settings.memory
    database = open_store(config, config.test, memory, "cpu")
    labels, notes = load_labels(config, config.test, database.n_videos)
    k = max(settings.ks)
    if len(database) < k:
        raise BadInput(
            f"{config.path}: mAP@{k} needs a database of {k} videos, found {len(database)}; set smaller 'ks'"
        )
    query = database if config.query_is_database else open_store(config, config.query, memory, "cpu")
    query_labels, more = load_labels(config, config.query, query.n_videos)
    notes = list(dict.fromkeys(notes + more))
    if alone := int((~(query_labels & labels.any(0)).any(1)).sum()):
        notes.append(f"{alone} of {len(query)} queries share no class with the database: each counts 0")
    return Splits(database, query, labels, query_labels, notes)


def check_splits(settings: Settings) -> None:
    """Read database and queries once, before training: what is wrong with them should not show after it.

    Raises:
        BadInput: a file cannot be used, or a feature is not finite.
    """
    splits = open_splits(settings, memory="disk")
    for store in (splits.database, splits.query):
        if not store.checked.all():
            for rows in store.blocks("checking database and queries"):
                store.read_files(rows)
                check_stop()


def run_test(
    system: System, settings: Settings, run: Run, weights: Mapping[str, Path | None] | None = None
) -> dict[int, float]:
    """Test one network, or several beside each other.

    Args:
        system: whose networks they are.
        settings: of the run.
        run: where to log.
        weights: checkpoints by the name of their row, the one to judge first; None as a checkpoint: a network
            as it is before training. None: what ``weight_path`` says.

    Returns:
        mAP@K of the first one by K.

    Raises:
        BadInput: a split, its labels or a checkpoint cannot be used.
    """
    if run.is_tested():
        return {}
    device, config = open_device(settings), settings.config
    splits = open_splits(settings)
    if not weights and not (weights := run.started_with("weights")):
        found = find_weights(settings, system.tested, system.network.load_published)
        weights = {found.name: found}
    nets, origins, differs = {}, {}, []
    for name, path in weights.items():
        if path:
            loaded = load_weights(Path(path), settings, system.tested, system.network)
            nets[name], origins[name] = loaded.net, loaded.origin
            differs += [f"{path}: {difference}" for difference in loaded.differs]
        else:
            nets[name], origins[name] = system.fresh_network(settings, config.feature_size), "initial weights"
    run.start(**environment(device), weights={name: str(path) for name, path in weights.items() if path})
    for name, path in weights.items():
        run.say(f"{name}: {path} ({origins[name]})" if path else f"{name}: {origins[name]}")
    for note in differs + splits.notes:
        run.say(note)
    results = {}
    for name, net in nets.items():
        net.bfloat16 = settings.precision == "bfloat16"
        net.to(device).eval()
        results[name] = evaluate_network(net, splits, settings, name)
    first = next(iter(results))
    return report(system.name, run, splits, results, origins[first], weights=str(weights[first]))


def report(
    system: str, run: Run, splits: Splits, results: Mapping[str, Result], origin: str, **facts: Any
) -> dict[int, float]:
    """Log the result of a test, print its table beside the published row, and end the run.

    Args:
        system: as in Json/published.json.
        run: where to log.
        splits: what was ranked.
        results: by the name of their row, the one to judge first; of the others mAP@K alone is shown.
        origin: what the first one is, for the title.
        facts: what else the log should say of it.

    Returns:
        mAP@K of the first one by K.
    """
    for note in {store.padding for store in (splits.database, splits.query) if store.padding}:
        run.say(note)
    config = run.settings.config
    first, *others = results
    judged, bits, zeros, distinct = results[first]
    published, protocol = published_row(system, config.dataset, bits)
    comparable = protocol == config.protocol
    run.event(
        "result",
        stage=run.stage,
        dataset=config.dataset,
        bits=bits,
        protocol=config.protocol,
        origin=origin,
        mAP=judged.map,
        mAP_tie_expected=judged.tie_averaged_map,
        precision=judged.precision,
        recall=judged.recall,
        chance=judged.chance,
        published=published if comparable else {},
        others={name: results[name].metrics.map for name in others},
        zero_code_entries=zeros,
        distinct_codes=distinct,
        database=len(splits.database),
        queries=len(splits.query),
        **facts,
    )
    rows = {
        first: judged.map,
        "  ties averaged": judged.tie_averaged_map,
        "  precision@K": judged.precision,
        "  recall@K": judged.recall,
        **{name: results[name].metrics.map for name in others},
        "chance": judged.chance,
    }
    if published and comparable:
        rows[f"published {system}"] = published
    who = "the database itself" if config.query_is_database else f"{len(splits.query)} queries"
    codes = f"{bits} bits" if bits else "real values"
    title = f"{config.dataset}, {codes}, {who}, {len(splits.database)} videos; {first}: {origin}"
    run.say(table(title, rows, run.settings.ks))
    if published and not comparable:
        how = "every database video queries" if protocol == "database" else "the query file queries"
        run.say(f"published {system}: not shown, as there {how}; --protocol {protocol} compares with it")
    if bits:
        run.say(f"{distinct} distinct codes among the {len(splits.database)} of the database")
    if zeros:
        run.say(f"{zeros} code entries are 0 (frames in a tie); each counts half a bit")
    run.end()
    return judged.map


def evaluate_network(net: nn.Module, splits: Splits, settings: Settings, name: str) -> Result:
    """Retrieval metrics of a network's codes, and what else there is to say of them."""
    database = codes_of(net, splits.database, settings, f"codes ({name})")
    query = database
    if splits.query is not splits.database:
        query = codes_of(net, splits.query, settings, f"codes ({name})")
    labels = (torch.from_numpy(each) for each in (splits.query_labels, splits.database_labels))
    zeros = sum(
        int((codes == 0).sum()) for codes in {id(codes): codes for codes in (query, database)}.values()
    )
    if zeros and not (query < 0).any() and not (database < 0).any():
        raise BadInput(f"{name}: its codes hold no -1 at all, only 0 and +1: the network has collapsed")
    result = evaluate(query, database, *labels, settings.ks, progress=True)
    return Result(result, database.shape[1], zeros, count_distinct(database))


def codes_of(net: nn.Module, store: FeatureStore, settings: Settings, description: str) -> Tensor:
    """Codes of all videos of a store, (N, b) int8 in {-1, 0, +1}."""
    device = next(net.parameters()).device
    return encode(store, lambda frames, _: net.hash(frames), device, settings, description, torch.int8)


def published_row(system: str, dataset: str, bits: int) -> tuple[dict[int, float], str | None]:
    """The published mAP@K of a system by K, and its protocol; empty where there is none."""
    rows = read_json(PUBLISHED).get(system, {}).get(dataset, {})
    return {int(k): value for k, value in rows.get(str(bits), {}).items()}, rows.get("protocol")


def table(title: str, rows: Mapping[str, Mapping[int, float]], ks: tuple[int, ...]) -> str:
    """Rows of numbers by K as text."""
    width = max(map(len, rows)) + 2
    lines = [title, "mAP@K".ljust(width) + "".join(f"@{k}".rjust(8) for k in ks)]
    for name, row in rows.items():
        lines.append(name.ljust(width) + "".join((f"{row[k]:.4f}" if k in row else "-").rjust(8) for k in ks))
    return "\n".join(lines)
