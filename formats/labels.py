"""Labels of videos: multi-hot or one class index a video, from MAT files (spec: section 1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io

from formats.dataset import DatasetConfig, Split
from formats.files import BadInput, some
from formats.mat import open_mat

MAT_TEXT = b"MATLAB 5.0 MAT-file"  # what a file of version 5 begins with, in 116 bytes


class LabelFile(NamedTuple):
    """What one label file holds."""

    path: Path
    where: str  # the file and its variable, for errors
    values: np.ndarray  # multi-hot (n, num_class), or one class index a video (n,)
    note: str  # what the user should know of it; empty: nothing

    @property
    def is_index(self) -> bool:
        """Whether it holds one class index a video."""
        return self.values.ndim == 1


def load_labels(config: DatasetConfig, split: Split, n_videos: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    """Multi-hot labels of a split from MAT files of version 5 or 7.3.

    A class-index vector is accepted: 0-based, or 1-based if the largest value of any labelled split is
    ``num_class``.

    Args:
        config: the dataset.
        split: of it, with labels.
        n_videos: videos in each of the split's feature files.

    Returns:
        Multi-hot labels, uint8 (N, num_class), and notes for the user.

    Raises:
        BadInput: a file cannot be read, lacks the variable, or disagrees with the features, the labels of
            another split or ``num_class``.
    """
    files = read_split(config, split, n_videos)
    where = f"{', '.join(map(str, split.labels))}: '{split.label_variable}'"
    labels = np.concatenate([file.values for file in files])
    if len(labels) != sum(n_videos):
        raise BadInput(f"{where} has {len(labels)} rows, but {sum(n_videos)} videos have features")
    notes = [file.note for file in files if file.note]
    if labels.ndim == 1:
        base = find_base(config)
        if base is None:
            base = 0
            notes.append("class indices are taken as counted from 0: none of them is 0, nor num_class")
        labels = labels[:, None] == np.arange(config.num_class) + base
    if not np.isin(labels, (0, 1)).all():
        raise BadInput(f"{where} must hold 0 and 1 only, found {labels[~np.isin(labels, (0, 1))][0]}")
    if not labels.any():
        raise BadInput(f"{where} has no positive label at all")
    return np.ascontiguousarray(labels, dtype=np.uint8), notes


def save_labels(path: Path, content: np.ndarray) -> None:
    """Write multi-hot labels (N, num_class) as the field does: MAT version 5, variable ``labels``."""
    with open(path, "wb") as file:
        scipy.io.savemat(file, {"labels": content})
        file.seek(0)  # scipy names the time in this text; the same labels are to be the same bytes
        file.write(MAT_TEXT.ljust(116))


def read_split(config: DatasetConfig, split: Split, n_videos: Sequence[int] = ()) -> list[LabelFile]:
    """The label files of a split, compared with ``n_videos`` of its feature files where these are as many."""
    files = [read_file(path, split, config.num_class) for path in split.labels]
    for file in files:
        if file.is_index != files[0].is_index:
            one, other = sorted((files[0], file), key=lambda each: each.is_index)
            raise BadInput(f"{one.where} is multi-hot, {other.where} holds class indices: expected one kind")
    if len(files) == len(n_videos):
        for file, features, n in zip(files, split.features, n_videos, strict=True):
            if len(file.values) != n:
                raise BadInput(f"{file.where} has {len(file.values)} rows, but {n} videos are in {features}")
    return files


def read_file(path: Path, split: Split, num_class: int) -> LabelFile:
    """The variable of one label file."""
    if not path.exists():
        raise BadInput(f"{path}: no such label file")
    name, note = split.label_variable, ""
    with open_mat(path) as variables:
        numeric = [each for each, read in variables.items() if read]
        if name not in variables and len(numeric) == 1 and not split.variable_is_stated:
            note = f"{path}: no variable '{name}', its only numeric one is taken: '{numeric[0]}'"
            name = numeric[0]
        if name not in variables:
            hint = "; the key 'label_variable' of the dataset JSON names another"
            raise BadInput(f"{path}: no variable '{name}', found {some(variables)}{hint}")
        read = variables[name]
        array = read() if read else np.empty(0)
    where = f"{path}: '{name}'"
    if array.size == 0:
        raise BadInput(f"{where} is not a numeric array")
    if array.ndim < 2 or is_index_vector(array, num_class):
        index = array.reshape(-1)
        if not np.isin(index, np.arange(num_class + 1)).all():
            raise BadInput(f"{where}: class indices must be 0..{num_class - 1} or 1..{num_class}, "
                           f"found {index.min()} to {index.max()}")  # fmt: skip
        return LabelFile(path, where, index, note)
    if array.ndim > 2:
        raise BadInput(f"{where} has shape {array.shape}, expected (N, {num_class})")
    if array.shape[1] != num_class:
        hint = ""
        if len(array) == num_class:
            hint = ": looks transposed, a MAT 7.3 file stores (N, num_class) as (num_class, N)"
        raise BadInput(f"{where} has {array.shape[1]} columns, but num_class is {num_class}{hint}")
    return LabelFile(path, where, array, note)


def is_index_vector(labels: np.ndarray, num_class: int) -> bool:
    """Whether a matrix is one class index a video: (N, 1) or (1, N), and not multi-hot of that width."""
    return 1 in labels.shape and labels.shape[1] != num_class or labels.shape == (1, 1)


def find_base(config: DatasetConfig) -> int | None:
    """The number of the first class, 0 or 1, where labels are class indices; None: nothing tells.

    Raises:
        BadInput: two files contradict each other; or nothing tells, and other labels are multi-hot.
    """
    splits = (config.test, config.query, config.train)
    files = [file for split in splits if split.labels for file in read_split(config, split)]
    index = [file for file in files if file.is_index]
    from_0 = [file for file in index if file.values.min() == 0]
    from_1 = [file for file in index if file.values.max() == config.num_class]
    if from_0 and from_1:
        raise BadInput(f"{from_0[0].where} counts classes from 0 (it holds a 0), {from_1[0].where} "
                       f"from 1 (it holds num_class, {config.num_class}): expected one way")  # fmt: skip
    multi_hot = [file for file in files if not file.is_index]
    if multi_hot and not from_0 and not from_1:
        raise BadInput(f"{multi_hot[0].where} is multi-hot, {index[0].where} holds class indices, but "
                       f"neither 0 nor num_class ({config.num_class}): from 0 or from 1? "
                       "Make all multi-hot, or all indices")  # fmt: skip
    return int(bool(from_1)) if from_0 or from_1 else None
