"""A stage, ``tools.baseline``: what learned codes must beat, with the splits, metrics and table of ``test``.

A video is the mean of its L frame features as they are stored, no frame or video normalised: x, (D,).

mean    no code: ranks by the cosine of x, real values
lsh     signs of random projections of x - the training mean (Charikar 2002)
pca     signs of the projections on the directions of largest variance of the training set
itq     the same, rotated so that signs lose least (Gong & Lazebnik 2011)

The training set is streamed, for itq twice; what is kept of it is a mean, a covariance (D, D) and, for itq,
b float32 a video. ``mean`` keeps D float32 of every video of database and queries. An interrupted run starts
again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.linalg import eigh, svd
from scipy.linalg.blas import dsyr, dsyrk
from torch import Tensor, nn
from torch.nn.functional import normalize

from data import FeatureStore, generator, open_store
from engine import ranks
from engine.device import check_stop, environment, open_device
from engine.evaluation import evaluate_network, open_splits
from engine.feed import encode, encode_blocks, memory_of_parts
from engine.report import Result, Splits, report
from engine.runs import Run
from engine.settings import RankingSettings, cuts, positive, setting
from engine.systems import System
from formats.files import BadInput, check_folder, expand, progress
from metrics import Evaluation, Tally, sign

METHODS = {
    "mean": "cosine of mean-pooled features",
    "lsh": "signs of random projections",
    "pca": "signs of principal components",
    "itq": "signs of rotated principal components",
}
ROUNDS = 50  # of itq
ROTATED = 2**14  # videos that itq rotates at once
COSINES = 2**22  # in a block: queries times database videos


@dataclass(frozen=True, kw_only=True)
class BaselineSettings(RankingSettings):
    """The settings of this stage; bits, batch and cuts are those of the JSON's block ``run``."""

    block: ClassVar[str] = "run"
    fresh_stages: ClassVar[tuple[str, ...]] = ("tools.baseline",)

    stage: str = setting("tools.baseline", "what to run")
    method: str = setting("itq", "the baseline", lambda v: v in METHODS, "mean, lsh, pca or itq")
    batch_size: int = setting(128, "videos in a batch", positive, "1 or more", also="bs batch")
    ks: tuple[int, ...] = setting(
        (5, 20, 40, 60, 80, 100), "cuts K of mAP@K", cuts, "whole numbers from 1 on, each once"
    )

    def problems(self) -> list[str]:
        """What is wrong with settings that are each right by themselves."""
        problems, width = super().problems(), self.config.feature_size
        if self.precision != "float32":
            problems.append(f"'precision' must be float32 for a baseline, found {self.precision}")
        if self.method in ("pca", "itq") and self.hashcode_size > width:
            problems.append(
                f"'hashcode_size' must be at most {width}, the width of the features, for method "
                f"{self.method}, found {self.hashcode_size}"
            )
        return problems


class LinearHash(nn.Module):
    """Signs of linear projections of the mean-pooled features: sign((x - mean) W)."""

    def __init__(self, mean: np.ndarray, directions: np.ndarray):
        super().__init__()
        self.mean, self.directions = (  # (D,), (D, b)
            nn.Parameter(torch.from_numpy(each).float(), requires_grad=False) for each in (mean, directions)
        )

    def project(self, frames: Tensor) -> Tensor:
        """Frames (B, L, D) to real values (B, b)."""
        return (pool(frames) - self.mean) @ self.directions

    def hash(self, frames: Tensor) -> Tensor:
        """Frames (B, L, D) to codes (B, b) in {-1, +1}, 0 where a value is exactly 0."""
        return sign(self.project(frames))


def train_model(settings: BaselineSettings, run: Run) -> dict[int, float]:
    """Fit a baseline to the training set and test it.

    Returns:
        mAP@K by K.

    Raises:
        BadInput: a split or its labels cannot be used, or the training set varies in too few directions.
    """
    device, config, name = open_device(settings), settings.config, settings.method
    check_folder(expand(settings.result_dir))
    splits = open_splits(settings)
    memory = memory_of_parts(settings)
    store = None if name == "mean" else open_store(config, config.train, memory, "cpu")
    run.start(METHODS[name], **environment(device))
    for note in splits.notes:
        run.say(note)
    if store is None:
        result = Result(evaluate_mean(splits, settings, device))
    else:
        net = fit(store, settings, device, run)
        net = ranks.on_first(net.cpu)().to(device)  # the same projections, should processors differ
        result = evaluate_network(net, splits, settings, name)
    origin = f"{METHODS[name]}, seed {settings.seed}"
    return report(SYSTEM.name, run, splits, {name: result}, origin, method=name, seed=settings.seed)


# --------------------------------------------------------------------------------------------------- codes


def pool(frames: Tensor) -> Tensor:
    """The mean of the frames (B, L, D) of every video, (B, D)."""
    return frames.mean(1)


def fit(store: FeatureStore, settings: BaselineSettings, device: torch.device, run: Run) -> LinearHash:
    """The projections of a method, from the training set.

    Raises:
        BadInput: the training set varies in too few directions.
    """
    rng, bits = generator(settings.seed, settings.stage), settings.hashcode_size
    blocks = encode_blocks(store, lambda frames, _: pool(frames), device, settings, "mean-pooled features")
    blocks = (block.double().numpy() for block in blocks)  # (B, D) each
    if settings.method == "lsh":
        mean = sum(block.sum(0) for block in blocks) / len(store)
        return LinearHash(mean, rng.standard_normal((store.shape[2], bits))).to(device)
    mean, directions, variance = principal_components(blocks, store.shape[2], bits)
    varied = int((variance > variance[0] * len(mean) * np.finfo(float).eps).sum())
    if varied < bits:
        raise BadInput(
            f"{store.paths[0]}: the {len(store)} training videos vary in {varied} directions, too few for "
            f"'hashcode_size' {bits} with method {settings.method}"
        )
    net = LinearHash(mean, directions).to(device)
    if settings.method == "itq":
        values = encode(store, lambda frames, _: net.project(frames), device, settings, "projections")
        rotation, errors = itq(values.numpy(), rng)
        run.say(f"quantisation error a bit: {errors[0]:.4f}, after {len(errors)} rounds {errors[-1]:.4f}")
        net = LinearHash(mean, directions @ rotation).to(device)
    return net


def principal_components(
    blocks: Iterable[np.ndarray], width: int, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and directions of largest variance, in one pass.

    Args:
        blocks: of videos, float64 (B, D).
        width: D.
        n: how many directions, at most D.

    Returns:
        The mean (D,), orthonormal directions (D, n), and the variance along each, largest first (n,).
    """
    count, total, moment = 0, np.zeros(width), np.zeros((width, width), order="F")
    for x in blocks:
        count, total = count + len(x), total + x.sum(0)
        moment = dsyrk(1, x.T, 1, moment, lower=1, overwrite_c=1)  # += x^T x: the lower half, in place
    mean = total / count
    moment = dsyr(-count, mean, a=moment, lower=1, overwrite_a=1)
    variance, directions = eigh(moment, overwrite_a=True, subset_by_index=(width - n, width - 1))
    return mean, directions[:, ::-1].copy(), variance[::-1] / count


def itq(values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
    """Iterative quantisation: the rotation R that makes |B - V R|^2 small, B = sign(V R).

    From a random rotation; a round takes B for this R, then the best R for this B: with the SVD
    B^T V = S O T^T, R = T S^T (Gong & Lazebnik 2011, section 2.2).

    Args:
        values: principal components V, (N, b).
        rng: of the first rotation.

    Returns:
        R, (b, b), and |B - V R|^2 / (N b) at the end of every round, which never rises; for V scaled to a
        mean square of 1, on which R does not depend.
    """
    rotation, errors = np.linalg.qr(rng.standard_normal((values.shape[1],) * 2))[0], []
    root = np.linalg.norm(values) * np.sqrt(values.size)
    for _ in progress(range(ROUNDS), "itq", unit="round"):
        product = np.zeros_like(rotation)  # B^T V, (b, b)
        for start in range(0, len(values), ROTATED):
            v = values[start : start + ROTATED].astype(np.float64)
            product += np.where(v @ rotation >= 0, 1, -1).T @ v
        left, singular, right = svd(product)
        rotation = right.T @ left.T
        errors.append(float(2 - 2 * singular.sum() / root))
        check_stop()
    return rotation, errors


# ------------------------------------------------------------------------------------------------- cosines


def evaluate_mean(splits: Splits, settings: BaselineSettings, device: torch.device) -> Evaluation:
    """Retrieval metrics of the ranking by the cosine of mean-pooled features."""

    def unit(frames: Tensor, _: slice) -> Tensor:
        return normalize(pool(frames))

    database = encode(splits.database, unit, device, settings, "mean-pooled features")
    query = database
    if splits.query is not splits.database:
        query = encode(splits.query, unit, device, settings, "mean-pooled features")
    return evaluate_cosine(query, database, *splits.labels, settings.ks, settings.exclude_self)


def evaluate_cosine(
    query: Tensor,
    database: Tensor,
    query_labels: Tensor,
    database_labels: Tensor,
    ks: Sequence[int],
    exclude_self: bool = False,
) -> Evaluation:
    """`metrics.evaluate` with 1 - cosine, rounded to float32, in place of the Hamming distance.

    Ranks divide the queries.

    Args:
        query: of length 1, (Q, D).
        database: of length 1, (N, D).
        query_labels: multi-hot, (Q, num_class).
        database_labels: multi-hot, (N, num_class).
        ks: the cuts K, at most N, with `exclude_self` N - 1.
        exclude_self: query i is database video i, which is left out of its own ranking.

    Returns:
        Every metric at every K and over the whole ranking; none by radius.
    """
    depth, n = max(ks), len(database) - exclude_self
    only = ranks.share(len(query))
    tally = Tally(len(query), n, ks)
    database_labels = database_labels.float()
    size = max(1, COSINES // len(database))
    for start in progress(range(only.start, only.stop, size), "ranking"):
        rows = slice(start, min(start + size, only.stop))
        distance = (1 - query[rows] @ database.T).clamp(min=0)  # (q, N)
        if exclude_self:
            places = torch.arange(len(distance))
            distance[places, start + places] = torch.inf
        relevant = query_labels[rows].float() @ database_labels.T > 0  # (q, N)
        # A key orders by distance, then by index: of floats that are not negative, the bits are in the order
        # of the values. Whether a video is relevant rides along.
        key = (distance.view(torch.int32).long() << 32) + 2 * torch.arange(len(database)) + relevant
        key = torch.from_numpy(np.sort(key.numpy(), axis=1))[:, :n]  # (q, n); numpy's sort is the faster
        distance, relevant = key >> 32, (key & 1).bool()
        tied = distance == distance[:, depth - 1 : depth]  # with the K-th
        total = relevant.sum(1)
        tally.add(
            rows, relevant[:, :depth], distance[:, :depth], tied.sum(1), (tied & relevant).sum(1), total
        )
        for ranked, is_relevant in zip(distance.numpy(), relevant.numpy(), strict=True):
            tally.add_whole(*groups_of(ranked, is_relevant))
        check_stop()
    tally.merge(only, ranks.collect)
    return tally.means()


def groups_of(distance: np.ndarray, relevant: np.ndarray) -> tuple[Tensor, Tensor]:
    """A ranking by groups, as `Tally.add_whole` takes them, (1, groups): few are relevant of many videos.

    In turn the videos before a tie with relevant ones, and that tie.

    Args:
        distance: in rank order, (N,).
        relevant: in rank order, bool, (N,).
    """
    levels, r = np.unique(distance[relevant], return_counts=True)
    ends = np.stack([np.searchsorted(distance, levels, side) for side in ("left", "right")], axis=1)
    n = np.diff(ends.ravel(), prepend=0)
    return torch.from_numpy(n)[None], torch.from_numpy(np.stack((0 * r, r), axis=1).reshape(1, -1))


SYSTEM = System("tools.baseline", BaselineSettings, stages=("tools.baseline",))
