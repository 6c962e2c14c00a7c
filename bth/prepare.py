"""Stage 2 of BTH: anchors, pseudo labels and similarity from the latents of the training videos.

k-means of the latents gives the anchors, the three nearest of each video its pseudo labels, the five nearest
the similarity (``bth/similarity.py``); the BTH spec's section 2. Each goes into its file
(``bth/prepared.py``), unless there is one that matches.

Axes: N training videos, H latent width, m anchors, k nearest anchors.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from bth import model
from bth.prepared import (
    FROM_LATENTS,
    MIN_ANCHORS,
    Prepared,
    features_stamp,
    make,
    network_stamp,
    wanted,
    write_stamped,
)
from bth.settings import BTHSettings
from bth.similarity import BLOCK, TagRows, similarity_blocks, write_similarity
from cluster import kmeans, nearest
from data import FeatureStore, generator
from engine import ranks
from engine.checkpoint import load_weights
from engine.device import check_stop, environment, open_device
from engine.feed import count_training_videos, encode
from engine.runs import Run
from formats.files import BadInput, check_folder, progress
from formats.weights import digest

MAX_UPDATES = 16  # rounds of k-means
SPARE = 3  # anchors looked at beyond the nearest k, for what float32 rounds away


def write_latents(
    settings: BTHSettings, store: FeatureStore, checkpoint: Path, say: Callable[[str], None]
) -> None:
    """Step 1: ``latent_feats.h5``, the mean hidden frame of every training video, by all ranks.

    Args:
        settings: of the run.
        store: the training videos.
        checkpoint: the network.
        say: tells the user what was done.
    """
    path = Prepared(settings, len(store)).paths["latent_feats"]

    def depends_on() -> str:
        return f"{network_stamp(settings, checkpoint)}, {features_stamp(settings, path)}"

    stamp = ranks.on_first(wanted)(path, depends_on, say)
    if stamp is None:
        return
    device = open_device(settings)
    net = load_weights(checkpoint, settings, ("bth.pretrain",), model).net.to(device)
    latents = encode(store, lambda frames, _: net.latent(frames), device, settings, "latent features")

    def write(file: h5py.File) -> None:
        file["feats"] = latents.numpy()

    ranks.on_first(write_stamped)(path, stamp, write, say)


@ranks.on_first
def train_model(settings: BTHSettings, run: Run, mask_only: Path | None = None) -> None:
    """Steps 2 to 4: ``anchors.h5``, ``train_assit.h5`` and ``sim_matrix.h5``; by rank 0, in seconds.

    Args:
        settings: of the run.
        run: where to log.
        mask_only: the network whose latents to use; None: whosever are there.

    Raises:
        BadInput: the latents, or a file that is there already, cannot be used.
    """
    n_videos = check_inputs(settings)
    prepared = Prepared(settings, n_videos)
    if not all(map(prepared.is_published, FROM_LATENTS)):  # what is wrong shows before a run begins
        prepared.check_latents(mask_only)
        _ = prepared.latents
    if not run.find_event("end"):  # else look again: another run may have used the same files since
        run.start(**environment(torch.device("cpu")), videos=n_videos)
    paths = prepared.paths

    def anchors_from() -> str:
        return f"latents {digest(prepared.latents)}, {settings.bth.n_anchors} anchors, seed {settings.seed}"

    def write_anchors(file: h5py.File) -> None:
        rng = generator(settings.seed, run.stage)
        file["feats"] = find_anchors(prepared.latents, settings.bth.n_anchors, rng).numpy()

    make(paths["anchors"], anchors_from, write_anchors, run.say)
    nearby: list[tuple[np.ndarray, np.ndarray]] = []  # found once, for both files below

    def nearest_five() -> tuple[np.ndarray, np.ndarray]:
        if not nearby:
            nearby.append(nearest_anchors(prepared.latents, prepared.anchors))
        return nearby[0]

    def write_pseudo_labels(file: h5py.File) -> None:
        file["pos"] = nearest_five()[1][:, :3]

    def write_tags(file: h5py.File) -> None:
        write_similarity(
            file, with_progress(similarity_blocks(*nearest_five(), len(prepared.anchors)), n_videos)
        )

    make(paths["train_assit"], lambda: prepared.stamp, write_pseudo_labels, run.say)
    make(paths["sim_matrix"], lambda: prepared.stamp, write_tags, run.say)
    prepared.check(mask_only)
    requested = "" if prepared.is_published("anchors") else f" of {settings.bth.n_anchors} requested"
    run.say(f"{len(prepared.anchors)} anchors{requested}")
    run.end()


def with_progress(blocks: Iterator[TagRows], n_videos: int) -> Iterator[TagRows]:
    """The blocks of tags, counted by a progress bar.

    Raises:
        Interrupted: a signal came; the file under way is dropped, those before it are kept.
    """
    with progress([], "similarity", total=n_videos) as bar:
        for rows in blocks:
            yield rows
            bar.update(len(rows.indptr) - 1)
            check_stop()


def check_inputs(settings: BTHSettings) -> int:
    """See what can be seen before training; returns the number of training videos.

    Raises:
        BadInput: more anchors asked for than there are videos; a prepared file that is there cannot be used,
            or one that is not could not be written.
    """
    config = settings.config
    n_videos = count_training_videos(config)
    prepared = Prepared(settings, n_videos)
    prepared.check_published()
    if settings.bth.n_anchors > n_videos and not prepared.is_published("anchors"):
        found = f"more than the {n_videos} training videos of {config.path}"
        hint = "set 'n_anchors' in its block 'bth'"
        raise BadInput(f"'bth.n_anchors' is {settings.bth.n_anchors}, {found}; {hint}")
    for path in prepared.paths.values():
        if not path.exists():
            check_folder(path.parent)
    return n_videos


def find_anchors(latents: Tensor, n_anchors: int, rng: np.random.Generator) -> Tensor:
    """k-means of the latents from distinct random videos, at most 16 updates, empty clusters dropped.

    Args:
        latents: latent features of the training videos, (N, H).
        n_anchors: anchors asked for.
        rng: draws the start.

    Returns:
        Anchors, (m, H) with m <= n_anchors.

    Raises:
        BadInput: fewer than 5 anchors, asked for or left; more than there are videos; a latent is not finite.
    """
    if not MIN_ANCHORS <= n_anchors <= len(latents):
        expected = f"{MIN_ANCHORS} to {len(latents)}, the number of training videos"
        raise BadInput(f"n_anchors: expected {expected}, found {n_anchors}")
    if not latents.isfinite().all():
        raise BadInput("latents: expected finite values, found NaN or infinity")
    start = torch.from_numpy(rng.choice(len(latents), size=n_anchors, replace=False))
    anchors = kmeans(latents, n_anchors, init=latents[start], max_iter=MAX_UPDATES, empty="drop").centers
    if len(anchors) < MIN_ANCHORS:
        found = f"{len(anchors)} of {n_anchors}: the others had no video nearest to them"
        raise BadInput(f"anchors: expected k-means to leave at least {MIN_ANCHORS}, found {found}")
    return anchors


def nearest_anchors(latents: Tensor, anchors: Tensor, k: int = MIN_ANCHORS) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest anchors of every video, nearest first, a tie to the lowest index; in float64.

    The first is a video's pseudo label, three are its row of ``pos``, and all five make the anchor graphs.

    Args:
        latents: latent features, (N, H).
        anchors: (m, H).
        k: anchors per video.

    Returns:
        Squared Euclidean distances (N, k) float64, and the anchors' indices (N, k) int64.
    """
    # The search is float32, best near the origin: it names some candidates too many, float64 then decides.
    origin = anchors.median(0).values  # the mean would follow a single outlier away from all others
    _, candidates = nearest(latents - origin, anchors - origin, min(k + SPARE, len(anchors)))
    candidates = candidates.sort(1).values.cpu().numpy()  # (N, k + spare)
    points, centers = (tensor.cpu().double().numpy() for tensor in (latents, anchors))
    squared = np.empty((len(points), k))
    indices = np.empty((len(points), k), np.int64)
    for start in range(0, len(points), BLOCK):
        rows = slice(start, start + BLOCK)
        difference = points[rows, None] - centers[candidates[rows]]  # (block, k + spare, H)
        exact = np.einsum("nkh,nkh->nk", difference, difference)
        order = exact.argsort(1, kind="stable")[:, :k]
        squared[rows] = np.take_along_axis(exact, order, 1)
        indices[rows] = np.take_along_axis(candidates[rows], order, 1)
    return squared, indices
