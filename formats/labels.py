"""Labels of videos: MAT files of version 5 or 7.3, multi-hot or one class index a video (spec: section 1)."""

from pathlib import Path

import h5py
import numpy as np
import scipy.io
import scipy.sparse

from formats.dataset import DatasetConfig, Split
from formats.files import BadInput


def load_labels(config: DatasetConfig, split: Split, n_videos: int) -> np.ndarray:
    """Multi-hot labels of a split, uint8 (N, num_class), from MAT files of version 5 or 7.3.

    A class-index vector is accepted: 0-based, or 1-based if the largest value of any labelled split is
    ``num_class``.

    Raises:
        BadInput: a file cannot be read, lacks the variable, or disagrees with the features or ``num_class``.
    """
    parts = [read_mat(path, split.label_variable) for path in split.labels]
    where = f"{', '.join(map(str, split.labels))}: '{split.label_variable}'"
    labels = [
        part.reshape(-1) if part.ndim < 2 or is_index_vector(part, config.num_class) else part
        for part in parts
    ]
    if len({part.ndim for part in labels}) > 1 or labels[0].ndim > 2:
        raise BadInput(f"{where} has shape {parts[0].shape}, expected ({n_videos}, {config.num_class})")
    try:
        labels = np.concatenate(labels)
    except ValueError:
        raise BadInput(f"{where}: the files have different numbers of classes") from None
    if len(labels) != n_videos:
        raise BadInput(f"{where} has {len(labels)} rows, but {n_videos} videos have features")
    if labels.ndim == 1:
        splits = (config.test, config.query)
        others = [read_mat(path, each.label_variable) for each in splits for path in each.labels]
        one_based = any(each.max() == config.num_class for each in (labels, *others))
        labels = index_to_multi_hot(labels, config.num_class, int(one_based), where)
    if labels.shape[1] != config.num_class:
        raise BadInput(f"{where} has {labels.shape[1]} columns, but num_class is {config.num_class}")
    if not np.isin(labels, (0, 1)).all():
        raise BadInput(f"{where} must hold 0 and 1 only, found {labels[~np.isin(labels, (0, 1))][0]}")
    if not labels.any():
        raise BadInput(f"{where} has no positive label at all")
    return np.ascontiguousarray(labels, dtype=np.uint8)


def is_index_vector(labels: np.ndarray, num_class: int) -> bool:
    """Whether a matrix is one class index a video: (N, 1) or (1, N), and not multi-hot of that width."""
    return 1 in labels.shape and labels.shape[1] != num_class or labels.shape == (1, 1)


def index_to_multi_hot(index: np.ndarray, num_class: int, base: int, where: str) -> np.ndarray:
    """One class index a video (N,), counted from ``base``, to multi-hot (N, num_class)."""
    classes = index.astype(np.float64) - base
    whole = np.isfinite(classes).all() and not (classes % 1).any()
    if not whole or classes.min() < 0 or classes.max() >= num_class:
        raise BadInput(f"{where}: class indices must be 0..{num_class - 1} or 1..{num_class}, "
                       f"found {index.min()} to {index.max()}")  # fmt: skip
    multi_hot = np.zeros((len(classes), num_class), dtype=np.uint8)
    multi_hot[np.arange(len(classes)), classes.astype(int)] = 1
    return multi_hot


def read_mat(path: Path, variable: str) -> np.ndarray:
    """One numeric variable of a MAT file, version 5 or 7.3, as MATLAB shows it.

    Raises:
        BadInput: the file is missing or damaged, or has no such variable.
    """
    if not path.exists():
        raise BadInput(f"{path}: no such label file")
    try:
        if h5py.is_hdf5(path):  # version 7.3
            with h5py.File(path, "r") as file:
                present = sorted(name for name in file if not name.startswith("#"))
                array = file.get(variable)
                if isinstance(array, h5py.Dataset) and array.shape is not None:
                    array = array[()].T  # a 7.3 file stores arrays transposed
        else:
            present = sorted(name for name, _, _ in scipy.io.whosmat(path))
            array = scipy.io.loadmat(path, variable_names=[variable]).get(variable)
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise BadInput(f"{path}: not a readable MAT file: {str(error).splitlines()[0]}") from None
    if array is None:
        raise BadInput(f"{path}: no variable '{variable}', found {present}")
    if scipy.sparse.issparse(array):
        array = array.toarray()
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.size == 0:
        raise BadInput(f"{path}: '{variable}' is not a numeric array")
    return array.astype(np.uint8) if array.dtype.kind == "b" else array
