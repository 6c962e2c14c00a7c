"""The numbers behind the figures of ``tools.plot``: rows in long form, as CSV wants them.

A *series* is a group of runs that differ in the seed alone (``tools/trials.py``). Its numbers are the mean
over its runs and the sample standard deviation (divisor n - 1; None for a single run).

Axes: N videos, b bits.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from formats.codefile import CodeFile
from formats.files import optional_package
from tools.logs import Log
from tools.tested import read_classes, read_codes
from tools.trials import Group, labels, metrics_among, spread

Row = dict[str, Any]


def by_series(groups: Sequence[Group]) -> Iterator[tuple[Row, Group]]:
    """Every group, after the first columns of its rows."""
    for (place, name), group in zip(labels(groups), groups, strict=True):
        yield {"dataset": place, "series": name, "runs": len(group.trials)}, group


def by_log(groups: Sequence[Group]) -> Iterator[tuple[Row, Log]]:
    """Every log, after the first columns of its rows."""
    for (place, name), group in zip(labels(groups), groups, strict=True):
        for trial in group.trials:
            yield {"dataset": place, "series": name, "log": str(trial.log.path)}, trial.log


def columns(name: str, values: Sequence[float]) -> Row:
    """Mean and standard deviation as columns."""
    return dict(zip((name, f"{name}_sd"), spread(values), strict=True))


# -------------------------------------------------------------------------------------------------- numbers


def losses(groups: Sequence[Group]) -> list[Row]:
    """Every term of every pass by epoch, times its weight, as the log has it, and mAP@K of evaluations."""
    rows = []
    for where, log in by_log(groups):
        passes = [(event, part, terms) for event in log.epochs for part, terms in event["losses"].items()]
        for event in log.evaluations:
            passes.append((event, "evaluation", {f"mAP@{k}": value for k, value in event["mAP"].items()}))
        for event, part, terms in passes:
            place = {"stage": log.start["stage"], "pass": part, "epoch": event["epoch"]}
            rows += [where | place | {"term": term, "value": value} for term, value in terms.items()]
    return rows


def cuts(groups: Sequence[Group]) -> list[Row]:
    """mAP@K, its ceiling (none before version 1.2) and its chance by K."""
    rows = []
    for where, group in by_series(groups):
        for quantity, k in metrics_among([group], ("mAP", "ceiling", "chance")):
            values = group.values((quantity, k))
            row = {"quantity": quantity, "K": k, "runs": len(values)}
            rows.append(where | row | columns("value", values))
    return rows


def radii(groups: Sequence[Group]) -> list[Row]:
    """Precision and recall of the videos within every Hamming radius from 0 to b."""
    rows = []
    for where, group in by_series(groups):
        for radius in range(group.kind.bits + 1):
            row = where | {"radius": radius}
            for quantity in ("precision", "recall"):
                row |= columns(quantity, group.values((f"{quantity}_by_radius", radius)))
            rows.append(row)
    return rows


def distances(groups: Sequence[Group]) -> list[Row]:
    """Of the relevant pairs of query and video, and of the others, the share at a distance in (d - 1, d]."""
    rows = []
    for where, group in by_series(groups):
        counts = [trial.log.result["by_radius"] for trial in group.trials]
        pairs, relevant = (np.array([run[key] for run in counts]) for key in ("pairs", "relevant_pairs"))
        for kind, there in (("relevant", relevant), ("other", pairs - relevant)):  # (runs, b + 1)
            shares = there / np.maximum(there.sum(1, keepdims=True), 1)
            for distance, values in enumerate(shares.T.tolist()):
                rows.append(where | {"kind": kind, "distance": distance} | columns("share", values))
    return rows


def balance(groups: Sequence[Group]) -> list[Row]:
    """Of the database's codes, the share of +1 of every bit and the absolute correlation of every two.

    A 0 counts half, else a bit with many ties would look as if it leaned to -1. A bit that is the same in all
    videos is correlated with none: None.
    """
    rows = []
    for where, log in by_log(groups):
        codes = read_codes(log, "database").exact()
        for bit, share in enumerate(((codes.mean(0) + 1) / 2).tolist()):
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


def code_map(groups: Sequence[Group], method: str = "pca") -> list[Row]:
    """Every video of the database as a point of the plane.

    Args:
        groups: of tests.
        method: ``pca``, or ``tsne`` by scikit-learn.

    Returns:
        Rows with its place, the name of its class (the first of several; None: it has none) and, of PCA, the
        share of the variance that lies along each axis.

    Raises:
        BadInput: a file of codes or classes cannot be read, or scikit-learn is missing.
    """
    rows = []
    for where, log in by_log(groups):
        file = read_codes(log, "database")
        codes, classes = file.exact(), first_classes(file)
        places, shares = principal_components(codes)
        if method == "tsne":
            places, shares = neighbour_embedding(codes, places), (None, None)
        axes = {"method": method, "x_share": shares[0], "y_share": shares[1]}
        for video, (x, y) in enumerate(places.tolist()):
            rows.append({**where, **axes, "video": video, "class": classes[video], "x": x, "y": y})
    return rows


def first_classes(file: CodeFile) -> list[str | None]:
    """The name of every video's first class.

    Raises:
        BadInput: the file of classes does not fit.
    """
    if file.labels is None:
        return [None] * len(file)
    names = read_classes(file)
    return [names[row.argmax()] if row.any() else None for row in file.labels]


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
