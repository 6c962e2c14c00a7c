"""How similar training videos are: from their nearest anchors to tags of all pairs, and the file of the tags.

No N x N matrix is ever built: tags are made, written and read a block of rows at a time, as CSR.

Axes: N training videos, m anchors, k nearest anchors, R rows of a block.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import scipy.sparse

from formats.files import BadInput
from formats.hdf5 import find_array, reading

GRAPH_SIZES = (3, 4, 5)  # k: the nearest anchors that a video is tied to in each anchor graph
THRESHOLD = 1e-5  # of S_k
TAGS = (-2, -1, 1, 2, 3)  # that can be stored
MADE = 250  # rows made at a time: N bytes of each then stay in the processor's cache
BLOCK = 1000  # rows read at a time
CHUNK = 1 << 18  # entries of an HDF5 chunk


class AnchorGraph(NamedTuple):
    """Z (N, m): every video as a convex combination of its k nearest anchors, zero elsewhere."""

    anchors: np.ndarray  # (N, k) int64, nearest first
    weights: np.ndarray  # (N, k) float64, rows sum to 1
    sigma: float  # width of the kernel
    n_anchors: int  # m


class TagRows(NamedTuple):
    """Rows of the similarity matrix as CSR: row r holds ``indices[indptr[r]:indptr[r + 1]]``, ascending."""

    indptr: np.ndarray  # (R + 1,) int64, from 0
    indices: np.ndarray  # (entries,) int32, videos
    tag: np.ndarray  # (entries,) int8, never 0


def anchor_graph(squared: np.ndarray, anchors: np.ndarray, n_anchors: int, k: int) -> AnchorGraph:
    """Z over the k nearest anchors: ``exp(-d^2 / (2 sigma^2))``, normalised to sum 1 for every video.

    ``sigma = mean_i(distance to the k-th nearest anchor) / sqrt(2)``.

    Args:
        squared: squared distances to the nearest anchors, ascending, (N, >= k).
        anchors: indices of these anchors, (N, >= k).
        n_anchors: m.
        k: anchors that a video is tied to.
    """
    sigma = np.sqrt(squared[:, k - 1]).mean() / np.sqrt(2)
    # A softmax, the smallest distance subtracted: for a video far from all anchors exp(-d^2 / ...) is 0 / 0.
    excess = squared[:, :k] - squared[:, :1]  # (N, k)
    # sigma is 0 only where all these distances are 0: equal weights then.
    weights = np.exp(-excess / max(2 * sigma**2, np.finfo(np.float64).tiny))
    weights /= weights.sum(1, keepdims=True)
    return AnchorGraph(anchors[:, :k], weights, float(sigma), n_anchors)


def similarity_blocks(
    squared: np.ndarray, anchors: np.ndarray, n_anchors: int, block: int = MADE
) -> Iterator[TagRows]:
    """Similarity tags of all pairs of videos, a block of rows at a time.

    ``S_k = [Z diag(1 / column sums) Z^T > 1e-5]`` of the anchor graphs k = 3, 4, 5, in float64;
    ``tag = 2 (S_5 - S_4) + S_3``: 1 similar, 2 dissimilar, 0 neither; -2, -1, 3 can occur. The diagonal is 1.

    Args:
        squared: squared distances to the 5 nearest anchors, (N, 5).
        anchors: indices of these anchors, (N, 5).
        n_anchors: m.
        block: R, rows of a block.

    Yields:
        The tags other than 0 of the next R rows.
    """
    n_videos = len(anchors)
    graphs = [
        (*_factors(anchor_graph(squared, anchors, n_anchors, k)), np.int8(worth))
        for k, worth in zip(GRAPH_SIZES, (1, -2, 2), strict=True)
    ]
    for start in range(0, n_videos, block):
        n_rows = min(block, n_videos - start)
        tags = np.zeros((n_rows, n_videos), np.int8)  # (R, N), the one dense array; it also sorts the entries
        for left, right, worth in graphs:
            product = left[start : start + n_rows] @ right  # (R, N) sparse, every entry once, unsorted
            position = np.repeat(np.arange(n_rows) * n_videos, np.diff(product.indptr)) + product.indices
            tags.reshape(-1)[position[product.data > THRESHOLD]] += worth
        # What the formula gives, unless so many videos share an anchor that 1e-5 is out of reach.
        np.fill_diagonal(tags[:, start : start + n_rows], 1)
        yield _compress(tags)


def _factors(graph: AnchorGraph) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """``Z diag(1 / column sums)`` (N, m) and ``Z^T`` (m, N); an anchor whose column sums to 0 weighs 0."""
    n_videos, k = graph.anchors.shape
    columns, shape = graph.anchors.ravel(), (n_videos, graph.n_anchors)
    total = np.bincount(columns, graph.weights.ravel(), minlength=graph.n_anchors)[graph.anchors]  # (N, k)
    share = np.divide(graph.weights, total, out=np.zeros_like(total), where=total > 0)  # (N, k)
    indptr = np.arange(0, n_videos * k + 1, k)
    left = scipy.sparse.csr_array((share.ravel(), columns, indptr), shape)
    return left, scipy.sparse.csr_array((graph.weights.ravel(), columns, indptr), shape).T.tocsr()


def _compress(tags: np.ndarray) -> TagRows:
    """CSR of dense tags (R, N)."""
    stored = tags != 0
    counts = np.count_nonzero(stored, axis=1)  # (R,)
    position = np.flatnonzero(stored)
    indices = position - np.repeat(np.arange(len(tags)) * tags.shape[1], counts)
    return TagRows(_offsets(counts), indices.astype(np.int32), tags.reshape(-1)[position])


def _offsets(counts: np.ndarray) -> np.ndarray:
    """``indptr`` of rows with these many entries."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))


def write_similarity(file: h5py.File, blocks: Iterable[TagRows]) -> int:
    """Append blocks of rows as ``indptr`` int64, ``indices`` int32 and ``tag`` int8.

    Args:
        file: an open, writable file without these datasets.
        blocks: the N rows in order.

    Returns:
        Number of entries.
    """
    # Differs: the published file is dense, N x N float32.
    indices = file.create_dataset("indices", (0,), np.int32, maxshape=(None,), chunks=(CHUNK,))
    tag = file.create_dataset("tag", (0,), np.int8, maxshape=(None,), chunks=(CHUNK,))
    indptr, end = [np.zeros(1, np.int64)], 0
    for rows in blocks:
        indptr.append(end + rows.indptr[1:])
        for dataset, values in ((indices, rows.indices), (tag, rows.tag)):
            dataset.resize(end + len(values), axis=0)
            dataset[end:] = values
        end += len(rows.tag)
    file.create_dataset("indptr", data=np.concatenate(indptr))
    return end


class Similarity:
    """The file of similarity tags, ours (CSR) or the published one (dense ``adj``), never read whole.

    Args:
        path: HDF5 file with ``indptr``, ``indices`` and ``tag``, or with ``adj`` (N, N).
        n_videos: N that the file must have; None takes the file's.

    Raises:
        BadInput: not an HDF5 file; a dataset is missing, or unlike the others or ``n_videos``. (What a row
            holds is checked when it is read.)
    """

    def __init__(self, path: str | Path, n_videos: int | None = None):
        self.path = path
        if not Path(path).exists():
            raise BadInput(f"{path}: no such similarity file")
        with reading(path):
            self._file = h5py.File(path, "r")
            self._dense = self._array("adj", 2) if "adj" in self._file else None  # (N, N)
            self._n_videos = self._read_offsets() if self._dense is None else len(self._dense)
            if self._dense is not None and self._dense.shape[1] != len(self):
                raise BadInput(f"{path}: 'adj': expected shape (N, N), found {self._dense.shape}")
            if n_videos not in (None, len(self)):
                raise BadInput(f"{path}: expected the tags of {n_videos} training videos, found {len(self)}")

    def _read_offsets(self) -> int:
        self._indptr = self._array("indptr", 1, "i")[:]  # (N + 1,)
        self._indices, self._tag = self._array("indices", 1, "i"), self._array("tag", 1, "i")
        if len(self._indptr) == 0 or self._indptr[0] != 0 or (np.diff(self._indptr) < 0).any():
            raise BadInput(f"{self.path}: 'indptr': expected N + 1 offsets that start at 0 and never fall")
        for key, array in (("indices", self._indices), ("tag", self._tag)):
            if len(array) != self._indptr[-1]:
                expected = f"{self._indptr[-1]} entries, the end of 'indptr'"
                raise BadInput(f"{self.path}: '{key}': expected {expected}, found {len(array)}")
        return len(self._indptr) - 1

    def _array(self, key: str, n_axes: int, kinds: str = "fiu") -> h5py.Dataset:
        array = find_array(self._file, key, self.path, "; expected it, or 'adj'")
        if array.shape is None or array.ndim != n_axes or array.dtype.kind not in kinds:
            expected = f"{n_axes} axes of {'integers' if kinds == 'i' else 'numbers'}"
            raise BadInput(f"{self.path}: '{key}': expected {expected}, found {array.dtype} {array.shape}")
        return array

    def __len__(self) -> int:
        return self._n_videos

    def row(self, video: int) -> tuple[np.ndarray, np.ndarray]:
        """The videos with a tag other than 0 towards ``video``, ascending, and these tags."""
        rows = self.rows(np.array([video]))
        return rows.indices, rows.tag

    def rows(self, videos: np.ndarray) -> TagRows:
        """The rows of ``videos`` (R,), strictly ascending; a run of neighbours costs one read.

        Raises:
            BadInput: what the file holds there is not rows of tags.
        """
        assert len(videos), "no video asked for"
        assert (np.diff(videos) > 0).all(), "videos must ascend"
        assert videos[0] >= 0, videos[0]
        assert videos[-1] < len(self), (videos[-1], len(self))
        where = f"in the rows {videos[0]} to {videos[-1]}"
        with reading(self.path, where):
            rows = self._sparse_rows(videos) if self._dense is None else self._dense_rows(videos)
        ascending = np.diff(rows.indices, prepend=-1) > 0
        ascending[rows.indptr[:-1][np.diff(rows.indptr) > 0]] = True  # a row's first entry follows nothing
        if not ascending.all() or ((rows.indices < 0) | (rows.indices >= len(self))).any():
            expected = f"ascending numbers below {len(self)} in every row"
            raise BadInput(f"{self.path}: 'indices': expected {expected}, found others {where}")
        return rows

    def _sparse_rows(self, videos: np.ndarray) -> TagRows:
        first = np.flatnonzero(np.diff(videos, prepend=-2) != 1)  # where runs of neighbours begin
        last = np.append(first[1:], len(videos)) - 1
        spans = list(zip(self._indptr[videos[first]], self._indptr[videos[last] + 1], strict=True))
        indices = np.concatenate([self._indices[start:stop] for start, stop in spans])
        tag = np.concatenate([self._tag[start:stop] for start, stop in spans])
        self._check_tags("tag", tag, videos)
        return TagRows(_offsets(self._indptr[videos + 1] - self._indptr[videos]), indices, tag)

    def _dense_rows(self, videos: np.ndarray) -> TagRows:
        parts = []
        for video in videos:
            row = self._dense[video]  # (N,)
            indices = np.flatnonzero(row)
            self._check_tags("adj", row[indices], videos)
            parts.append((len(indices), indices.astype(np.int32), row[indices].astype(np.int8)))
        counts, indices, tag = zip(*parts, strict=True)
        return TagRows(_offsets(np.array(counts)), np.concatenate(indices), np.concatenate(tag))

    def _check_tags(self, key: str, tags: np.ndarray, videos: np.ndarray) -> None:
        with np.errstate(all="ignore"):  # isin's own arithmetic, where a tag is not finite
            known = np.isin(tags, TAGS)
        if not known.all():
            expected = f"tags of {TAGS}" if key == "tag" else f"tags of 0 and {TAGS}"
            raise BadInput(f"{self.path}: '{key}': expected {expected}, found others from row {videos[0]} on")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Similarity":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
