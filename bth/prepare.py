"""Stage 2 of BTH: anchors, pseudo labels and similarity from the latents of the training videos.

k-means of the latents gives the anchors, the three nearest of each video its pseudo labels, the five nearest
the similarity (``bth/similarity.py``); the BTH spec's section 2. Each is an HDF5 file under its published
name and keeps, as an attribute, what it was made from: a file that matches is kept, and one without the
attribute is a published one, taken as it is.

Axes: N training videos, H latent width, m anchors, k nearest anchors.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from bth import model
from bth.similarity import BLOCK, GRAPH_SIZES, Similarity, TagRows, similarity_blocks, write_similarity
from cluster import kmeans, nearest
from data import BadInput, FeatureStore, expand, generator, progress, write_whole
from engine.checkpoint import load_weights
from engine.device import check_stop, environment, open_device
from engine.feed import count_training_videos, encode
from engine.runs import Run
from engine.settings import Settings

MADE_FROM = "made_from"  # attribute of a prepared file

MIN_ANCHORS = max(GRAPH_SIZES)
MAX_UPDATES = 16  # rounds of k-means
SPARE = 3  # anchors looked at beyond the nearest k, for what float32 rounds away


class Prepared:
    """The four prepared files of a run, read when they are asked for.

    Args:
        settings: of the run.
        n_videos: N that every file must have.
    """

    def __init__(self, settings: Settings, n_videos: int):
        bth, folder = settings.bth, expand(settings.result_weight_dir)
        self.n_videos, self.hidden_size = n_videos, settings.hidden_size
        self.paths = {
            name: expand(getattr(bth, name) or str(folder / f"{name}.h5"))
            for name in ("latent_feats", "anchors", "train_assit", "sim_matrix")
        }

    @cached_property
    def latents(self) -> Tensor:
        """Latent features of the training videos, (N, H)."""
        return self.read("latent_feats", "feats", (self.n_videos, self.hidden_size), "f")

    @cached_property
    def anchors(self) -> Tensor:
        """(m, H)."""
        return self.read("anchors", "feats", (None, self.hidden_size), "f")

    @cached_property
    def pseudo_label(self) -> np.ndarray:
        """The nearest anchor of every training video, (N,)."""
        pos = self.read("train_assit", "pos", (self.n_videos, 3), "iu").numpy()
        if pos.min() < 0 or pos.max() >= len(self.anchors):
            raise BadInput(
                f"{self.paths['train_assit']}: 'pos': expected anchors 0 to {len(self.anchors) - 1} "
                f"({self.paths['anchors']}), found {pos.min()} to {pos.max()}"
            )
        return pos[:, 0]

    @cached_property
    def similarity(self) -> Similarity:
        """Tags between training videos."""
        return Similarity(self.paths["sim_matrix"], self.n_videos)

    @cached_property
    def stamp(self) -> str:
        """What pseudo labels and similarity are made from."""
        return f"latents {digest(self.latents)}, anchors {digest(self.anchors)}"

    def check(self) -> None:
        """See that pseudo labels and similarity were made from these anchors, unless they are published ones.

        Raises:
            BadInput: one was not: another run has used the same files since.
        """
        for name in ("train_assit", "sim_matrix"):
            found = made_from(self.paths[name])
            if found is not None and not found.endswith(f"anchors {digest(self.anchors)}"):
                raise BadInput(
                    f"{self.paths[name]}: not made from {self.paths['anchors']}; run stage bth.prepare again"
                )

    def inputs(self) -> dict[str, str]:
        """Fingerprints of what training reads."""
        tags = made_from(self.paths["sim_matrix"]) or str(self.paths["sim_matrix"].stat().st_size)
        return {
            "anchors": digest(self.anchors),
            "pos": digest(torch.from_numpy(self.pseudo_label)),
            "tags": tags,
        }

    def read(self, name: str, key: str, shape: tuple[int | None, int], kinds: str) -> Tensor:
        """One array of a prepared file, float32 or int64.

        Raises:
            BadInput: the file cannot be read, or its array is not of that shape and kind, or not finite.
        """
        path = self.paths[name]
        if not path.exists():
            raise BadInput(f"{path}: no such file; the stages bth.pretrain and bth.prepare make it")
        try:
            with h5py.File(path, "r") as file:
                if not isinstance(file.get(key), h5py.Dataset):
                    raise BadInput(f"{path}: no dataset '{key}', found {sorted(file)}")
                array = file[key][()]
        except (OSError, RuntimeError, KeyError) as error:
            raise BadInput(f"{path}: not a readable HDF5 file (damaged or truncated?): {error}") from None
        array = np.asarray(array)
        fits = np.ndim(array) == 2 and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype.kind not in kinds:
            expected = f"({', '.join('m' if size is None else str(size) for size in shape)})"
            found = f"{array.dtype} {np.shape(array)}"
            kind = "numbers" if kinds == "f" else "integers"
            raise BadInput(f"{path}: '{key}': expected {kind} {expected}, found {found}")
        if not np.isfinite(array).all():
            raise BadInput(f"{path}: '{key}': expected finite values, found NaN or infinity")
        return torch.from_numpy(array.astype(np.float32 if kinds == "f" else np.int64))


def make(
    path: Path, depends_on: Callable[[], str], write: Callable[[h5py.File], None], say: Callable[[str], None]
) -> None:
    """Write a prepared file, whole or not at all, unless there is one that matches, or a published one.

    Args:
        path: of the file.
        depends_on: on what, in words and digests; asked for only if it is needed.
        write: fills the open file.
        say: tells the user which.
    """
    if path.exists():
        found = made_from(path)
        if found is None:
            say(f"{path}: there already, taken as it is")
            return
        if found == depends_on():
            say(f"{path}: up to date, kept")
            return

    def write_stamped(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            write(file)
            file.attrs[MADE_FROM] = depends_on()

    write_whole(path, write_stamped)
    say(f"{path}: written")


def made_from(path: Path) -> str | None:
    """What a prepared file says it was made from; None: it is a published one.

    Raises:
        BadInput: it is no HDF5 file.
    """
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get(MADE_FROM)
    except OSError as error:
        raise BadInput(f"{path}: not a readable HDF5 file (damaged or truncated?): {error}") from None


def digest(*arrays: Tensor) -> str:
    """A fingerprint of tensors."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def write_latents(
    settings: Settings, store: FeatureStore, checkpoint: Path, say: Callable[[str], None]
) -> None:
    """Step 1: ``latent_feats.h5``, the mean hidden frame of every training video.

    Args:
        settings: of the run.
        store: the training videos.
        checkpoint: the network.
        say: tells the user what was done.
    """
    device = open_device(settings)
    net = load_weights(checkpoint, settings, settings.config, ("bth.pretrain",), model).net.to(device)

    def depends_on() -> str:
        files = [
            (str(file.path), file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in store.files
        ]
        return f"network {digest(*net.state_dict().values())}, features {files}"

    def write(file: h5py.File) -> None:
        latents = encode(store, lambda frames, _: net.latent(frames), device, settings, "latent features")
        file["feats"] = latents.numpy()

    make(Prepared(settings, len(store)).paths["latent_feats"], depends_on, write, say)


def train_model(settings: Settings, run: Run) -> None:
    """Steps 2 to 4: ``anchors.h5``, ``train_assit.h5`` and ``sim_matrix.h5``.

    Raises:
        BadInput: the latents, or a file that is there already, cannot be used.
    """
    done = run.is_done()  # even then: another run may have used the same files since
    n_videos = check_anchors(settings)
    prepared = Prepared(settings, n_videos)
    paths = prepared.paths
    if not done:
        run.start(**environment(torch.device("cpu")), videos=n_videos)
    say = quiet if done else run.say

    def anchors_from() -> str:
        return f"latents {digest(prepared.latents)}, {settings.bth.n_anchors} anchors, seed {settings.seed}"

    def write_anchors(file: h5py.File) -> None:
        rng = generator(settings.seed, run.stage)
        file["feats"] = find_anchors(prepared.latents, settings.bth.n_anchors, rng).numpy()

    make(paths["anchors"], anchors_from, write_anchors, say)
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

    make(paths["train_assit"], lambda: prepared.stamp, write_pseudo_labels, say)
    make(paths["sim_matrix"], lambda: prepared.stamp, write_tags, say)
    say(f"{len(prepared.anchors)} anchors of {settings.bth.n_anchors} requested")
    run.end()


def quiet(_: str) -> None:
    """Say nothing."""


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


def check_anchors(settings: Settings) -> int:
    """Compare the number of anchors with that of training videos, which is returned.

    Raises:
        BadInput: more anchors than videos, or a prepared file that is there already is no HDF5 file.
    """
    config = settings.config
    n_videos = count_training_videos(config)
    for path in Prepared(settings, n_videos).paths.values():
        if path.exists():
            made_from(path)
    if settings.bth.n_anchors > n_videos:
        found = f"{n_videos} training videos of {config.path}"
        raise BadInput(f"'bth.n_anchors' is {settings.bth.n_anchors}, more than the {found}")
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
    origin = anchors.mean(0)
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
