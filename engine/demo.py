"""The demo set: small, made on first use, and such that frames of a video must be taken together."""

import functools
from pathlib import Path

import h5py
import numpy as np

from formats.dataset import DatasetConfig
from formats.files import write_whole
from formats.labels import save_labels

DEMO_VIDEOS = {"train": 960, "test": 480, "query": 120}


def make_demo(config: DatasetConfig) -> None:
    """Generate the files of the shipped demo set that are missing; of any other dataset, nothing.

    Deterministic, a second or two. A class is a path of three feature vectors. A video shows them in some of
    its frames; the others come from a pool of clips that all classes share, and noise and a strong nuisance
    (think of light and camera) lie over all of them, different in every frame. So no single frame tells the
    class, nor does the direction of largest variance; what the frames of a video have in common does. (At
    twice the nuisance, a k-means of latents would find nothing but nuisance.)
    """
    splits = (config.train, config.test, config.query)
    files = [path for split in splits for path in split.features + split.labels]
    present = [path for split in splits for path in split.features if path.exists()]
    if config.dataset != "demo" or all(map(Path.exists, files)) or not all(map(is_demo, present)):
        return
    width, n_frames = config.feature_size, config.max_frames
    rng = np.random.default_rng(0)
    classes = rng.standard_normal((config.num_class, 3, width), np.float32)
    pool = rng.standard_normal((40, width), np.float32)
    nuisance = 0.5 * rng.standard_normal((6, width), np.float32)
    for number, split in enumerate(splits):
        rng = np.random.default_rng([1, number])
        n_videos = DEMO_VIDEOS[split.name]
        label = rng.permutation(n_videos) % config.num_class
        phase = rng.integers(3, size=(n_videos, n_frames))
        shown = classes[label[:, None], phase]  # (N, L, D)
        clips = pool[rng.integers(len(pool), size=(n_videos, n_frames))]
        relevant = rng.random((n_videos, n_frames, 1)) < 0.4
        features = np.where(relevant, shown, clips)
        features += rng.standard_normal((n_videos, n_frames, len(nuisance)), np.float32) @ nuisance
        features += 1.1 * rng.standard_normal(features.shape, np.float32)
        multi_hot = np.eye(config.num_class, dtype=np.uint8)[label]
        for path, write, content in (
            *((path, save_features, features) for path in split.features),
            *((path, save_labels, multi_hot) for path in split.labels),
        ):
            if not path.exists():
                write_whole(path, functools.partial(write, content=content))


def is_demo(path: Path) -> bool:
    """Whether a feature file is one that ``make_demo`` wrote, and not the user's."""
    try:
        with h5py.File(path, "r") as file:
            return "demo" in file.attrs
    except OSError:
        return False


def save_features(path: Path, content: np.ndarray) -> None:
    """Write features (N, L, D) as the field does: contiguous, uncompressed, dataset ``feats``."""
    with h5py.File(path, "w") as file:
        file.attrs["demo"] = True
        file["feats"] = content
