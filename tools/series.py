"""Runs as series, and the numbers behind the figures of ``tools.plot``: rows in long form, as CSV wants them.

Runs of one *series* differ in their seed alone. Numbers of a series are the mean over its runs and the sample
standard deviation (divisor n - 1; None for a single run).

Axes: N videos, b bits.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.systems import system_of
from formats.codefile import read_code_file
from formats.files import BadInput, expand, optional_package
from tools.logs import Log

Row = dict[str, Any]


def facts(log: Log) -> Row:
    """What may tell two runs apart besides the seed, in words.

    Raises:
        BadInput: the log does not say of which stage it is.
    """
    result = log.result or {}
    try:
        system = result.get("system") or system_of(log.start.get("stage")).name
    except BadInput as error:
        raise BadInput(f"{log.path}: {error}") from None
    bits = result.get("bits") if log.result else log.setting("hashcode_size")
    dataset = result.get("dataset") or Path(str(log.setting("data_set_config"))).stem
    asks = ", the database asks itself" if result.get("protocol") == "database" else ""
    return {
        "dataset": f"{dataset}{asks}{', itself left out' if result.get('exclude_self') else ''}",
        "system": f"baseline {result['method']}" if result.get("method") else system,
        "bits": f"{bits} bits" if bits else "real values",
        "origin": (result.get("origin") or "").partition(", seed ")[0].removesuffix(f" on {dataset}"),
        "precision": result.get("precision_setting") or log.setting("precision") or "",
    }


def series(logs: Sequence[Log]) -> list[tuple[str, str]]:
    """Dataset and series of every log; a series is named by system, bits and what else its system varies."""
    found, names = [facts(log) for log in logs], []
    for each in found:
        rivals = [other for other in found if other["system"] == each["system"]]
        varied = [each[key] for key in ("origin", "precision") if len({other[key] for other in rivals}) > 1]
        names.append((each["dataset"], ", ".join(filter(None, (each["system"], each["bits"], *varied)))))
    return names


def newest(logs: Sequence[Log]) -> tuple[list[Log], list[Log]]:
    """The logs of which no newer one has the same series and seed, and the others.

    Before version 1.2 a log does not say the seed of the network that it judged: it stands for itself.
    """
    last: dict[Any, Path] = {}
    named = zip(series(logs), logs, strict=True)
    for name, log in sorted(named, key=lambda pair: pair[1].result.get("time") or ""):
        seed = log.result.get("seed")
        last[log.path if seed is None else (name, seed)] = log.path
    kept = set(last.values())
    return [log for log in logs if log.path in kept], [log for log in logs if log.path not in kept]


def by_series(logs: Sequence[Log]) -> Iterator[tuple[Row, list[dict]]]:
    """The results of every series, after the first columns of its rows."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for name, log in zip(series(logs), logs, strict=True):
        groups.setdefault(name, []).append(log.result)
    for (dataset, name), results in groups.items():
        yield {"dataset": dataset, "series": name, "runs": len(results)}, results


def by_log(logs: Sequence[Log]) -> Iterator[tuple[Row, Log]]:
    """Every log, after the first columns of its rows."""
    for (dataset, name), log in zip(series(logs), logs, strict=True):
        yield {"dataset": dataset, "series": name, "log": str(log.path)}, log


def spread(values: Sequence[float], name: str) -> Row:
    """Mean and sample standard deviation (divisor n - 1; None for a single value) as columns."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {name: statistics.fmean(values), f"{name}_sd": deviation}


# -------------------------------------------------------------------------------------------------- numbers


def losses(logs: Sequence[Log]) -> list[Row]:
    """Every term of every pass by epoch, times its weight, as the log has it, and mAP@K of evaluations."""
    rows = []
    for where, log in by_log(logs):
        passes = [(event, part, terms) for event in log.epochs for part, terms in event["losses"].items()]
        for event in log.evaluations:
            passes.append((event, "evaluation", {f"mAP@{k}": value for k, value in event["mAP"].items()}))
        for event, part, terms in passes:
            place = {"stage": log.start["stage"], "pass": part, "epoch": event["epoch"]}
            rows += [where | place | {"term": term, "value": value} for term, value in terms.items()]
    return rows


def cuts(logs: Sequence[Log]) -> list[Row]:
    """mAP@K, its ceiling (none before version 1.2) and its chance by K."""
    rows = []
    for where, results in by_series(logs):
        for quantity in ("mAP", "ceiling", "chance"):
            tables = [result.get(quantity, {}) for result in results]
            for k in sorted({int(k) for table in tables for k in table}):
                values = [table[str(k)] for table in tables if str(k) in table]
                found = {"quantity": quantity, "K": k, "runs": len(values)}
                rows.append(where | found | spread(values, "value"))
    return rows


def radii(logs: Sequence[Log]) -> list[Row]:
    """Precision and recall of the videos within every Hamming radius from 0 to b."""
    rows = []
    for where, results in by_series(logs):
        for radius in range(results[0]["bits"] + 1):
            row = where | {"radius": radius}
            for quantity in ("precision", "recall"):
                row |= spread([result["by_radius"][quantity][radius] for result in results], quantity)
            rows.append(row)
    return rows


def distances(logs: Sequence[Log]) -> list[Row]:
    """Of the relevant pairs of query and video, and of the others, the share at a distance in (d - 1, d]."""
    rows = []
    for where, results in by_series(logs):
        for kind in ("relevant", "other"):
            shares = []
            for result in results:
                pairs, relevant = (np.array(result["by_radius"][key]) for key in ("pairs", "relevant_pairs"))
                counts = relevant if kind == "relevant" else pairs - relevant
                shares.append(counts / max(counts.sum(), 1))
            for distance, values in enumerate(np.transpose(shares).tolist()):
                rows.append(where | {"kind": kind, "distance": distance} | spread(values, "share"))
    return rows


def balance(logs: Sequence[Log]) -> list[Row]:
    """Of the database's codes, the share of +1 of every bit and the absolute correlation of every two.

    A bit that is the same in all videos is correlated with none: None.
    """
    rows = []
    for where, log in by_log(logs):
        codes, _ = read_codes(log)
        for bit, share in enumerate((codes > 0).mean(0).tolist()):
            rows.append({**where, "quantity": "share of +1", "bit": bit, "other_bit": None, "value": share})
        for bit, values in enumerate(correlation(codes).tolist()):
            for other, value in enumerate(values[:bit]):
                found = {"quantity": "correlation", "bit": bit, "other_bit": other}
                rows.append({**where, **found, "value": None if math.isnan(value) else value})
    return rows


def correlation(codes: np.ndarray) -> np.ndarray:
    """Absolute Pearson correlation of the bits of codes (N, b), (b, b); NaN for a bit that never changes."""
    centred = codes - codes.mean(0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=0)
    length[length == 0] = np.nan
    return np.abs(centred.T @ centred / np.outer(length, length))


def code_map(logs: Sequence[Log], method: str = "pca") -> list[Row]:
    """Every video of the database as a point of the plane.

    Args:
        logs: of tests.
        method: ``pca``, or ``tsne`` by scikit-learn.

    Returns:
        Rows with its place, its class (the first of several; None: it has none) and, of PCA, the share of
        the variance that lies along each axis.

    Raises:
        BadInput: a file of codes cannot be read, or scikit-learn is missing.
    """
    rows = []
    for where, log in by_log(logs):
        codes, classes = read_codes(log)
        places, shares = principal_components(codes)
        if method == "tsne":
            places, shares = neighbour_embedding(codes, places), (None, None)
        axes = {"method": method, "x_share": shares[0], "y_share": shares[1]}
        for video, (x, y) in enumerate(places.tolist()):
            rows.append({**where, **axes, "video": video, "class": classes[video], "x": x, "y": y})
    return rows


def principal_components(codes: np.ndarray) -> tuple[np.ndarray, Sequence[float]]:
    """Codes (N, b) along their two directions of largest variance, (N, 2), and the share of it in each.

    A direction points to where the first of its largest entries is positive, whatever the processor.
    """
    centred = codes - codes.mean(0, dtype=np.float64)
    variance, directions = np.linalg.eigh(centred.T @ centred)
    variance, directions = variance[::-1], directions[:, :-3:-1]  # (b,), (b, 2)
    largest = directions[np.abs(directions).round(6).argmax(0), [0, 1]]
    return centred @ (directions * np.sign(largest)), variance[:2] / max(variance.sum(), 1e-12)


def neighbour_embedding(codes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """t-SNE (van der Maaten & Hinton 2008) of codes (N, b), begun at their principal components, (N, 2).

    Squared distances of codes are four Hamming distances, so neighbours are those of the ranking.

    Raises:
        BadInput: scikit-learn is missing.
    """
    manifold = optional_package("sklearn.manifold", "scikit-learn", "plot")
    start = places / max(places[:, 0].std(), 1e-12) * 1e-4  # as scikit-learn scales its own
    perplexity = min(30, len(codes) / 3)
    tsne = manifold.TSNE(init=start.astype(np.float32), perplexity=perplexity, random_state=0)
    return tsne.fit_transform(codes.astype(np.float32))


def read_codes(log: Log) -> tuple[np.ndarray, list[int | None]]:
    """The codes of the database that a test ranked, (N, b), and the first class of every video.

    Raises:
        BadInput: the file is missing or damaged.
    """
    path = expand(str(log.result["codes"].get("database")))
    if not path.exists():
        raise BadInput(f"{log.path}: its codes, {path}, are not there (as seen from where the test ran)")
    file = read_code_file(path)
    labels = np.zeros((len(file), 1)) if file.labels is None else file.labels  # (N, num_class)
    return file.exact(), [int(row.argmax()) if row.any() else None for row in labels]
