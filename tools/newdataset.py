"""A dataset of new features: its files, and the JSON, whose settings every system sizes to the set.

How is the system's own matter (``SystemSettings.sized_for``): below 10,000 training videos what was tuned on
GTSRB's 438, from there on what is published. Cuts K that the database is too small for are left out.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from engine.settings import SystemSettings
from engine.systems import systems
from formats.dataset import SPLITS
from formats.files import write_whole
from formats.labels import save_labels
from formats.recipe import Recipe, write_recipe
from tools.listing import Video

WRITE_VIDEOS = 256  # copied at a time


def write_features(folder: Path, counts: Mapping[str, int], records: np.ndarray, recipe: Recipe) -> None:
    """The feature files, of records (N, L, D) in the order of the splits.

    Raises:
        BadInput: the disk is full, or worse.
    """

    def write(path: Path, mine: np.ndarray) -> None:
        with h5py.File(path, "w") as file:
            write_recipe(file, recipe)
            dataset = file.create_dataset("feats", mine.shape, mine.dtype)
            for start in range(0, len(mine), WRITE_VIDEOS):
                dataset[start : start + WRITE_VIDEOS] = mine[start : start + WRITE_VIDEOS]

    start = 0
    for split in SPLITS:
        mine = records[start : start + counts[split]]
        write_whole(folder / f"{split}_feats.h5", partial(write, mine=mine))
        start += counts[split]


def write_names_and_labels(folder: Path, videos: Sequence[Video]) -> list[str]:
    """Names of videos and classes, and labels; the classes, by number if all are numbers, else by name."""

    def write_lines(name: str, lines: Sequence[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        write_whole(folder / name, lambda path: path.write_text(text, encoding="utf-8"))

    classes = sorted({name for video in videos for name in video.classes})
    if all(name.isascii() and name.isdecimal() for name in classes):
        classes.sort(key=int)
    column = {name: number for number, name in enumerate(classes)}
    for split in SPLITS:
        mine = [video for video in videos if video.split == split]
        write_lines(f"{split}_names.txt", [video.name for video in mine])
        if classes:
            labels = np.zeros((len(mine), len(classes)), np.uint8)
            for row, video in zip(labels, mine, strict=True):
                row[[column[name] for name in video.classes]] = 1
            write_whole(folder / f"{split}_labels.mat", partial(save_labels, content=labels))
    if classes:
        write_lines("classes.txt", classes)
    return classes


def dataset_json(
    name: str, folder: Path, n_videos: Mapping[str, int], n_classes: int, shape: tuple[int, int]
) -> str:
    """The text of the JSON.

    Args:
        name: of the dataset.
        folder: of its features.
        n_videos: in each split.
        n_classes: 0: there are no labels.
        shape: of a video's features, (L, D).
    """
    content: dict[str, Any] = {"dataset": name}
    for split in SPLITS:
        content[split] = str(folder / f"{split}_feats.h5")
        content[f"{split}_label"] = str(folder / f"{split}_labels.mat") if n_classes else ""
    content |= {"num_class": n_classes, "hidden_size": shape[1], "max_frames": shape[0]}
    for system in systems():
        content[system.settings.block] = sized(system.settings, n_videos)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def sized(kind: type[SystemSettings], n_videos: Mapping[str, int]) -> dict[str, Any]:
    """The block of a system.

    Args:
        kind: the system's settings.
        n_videos: in each split.
    """
    settings = kind.sized_for(n_videos["train"])
    ks = kind.__dataclass_fields__["ks"].default
    if max(ks) > n_videos["test"]:
        settings["ks"] = [k for k in ks if k <= n_videos["test"]] or [n_videos["test"]]
    return settings
