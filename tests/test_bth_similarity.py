"""Anchor graphs, similarity tags and their file: golden numbers, the dense formula, every broken file."""

import h5py
import numpy as np
import pytest
import torch
from synthetic import GOLDEN

import bth.similarity
from bth.prepare import nearest_anchors
from bth.similarity import Similarity, TagRows, anchor_graph, similarity_blocks, write_similarity
from formats.files import BadInput


def dense_graph(squared, anchors, n_anchors, k):
    """Z (N, m), entry by entry."""
    sigma = sum(np.sqrt(squared[:, k - 1])) / len(squared) / np.sqrt(2)
    z = np.zeros((len(squared), n_anchors))
    for i in range(len(squared)):
        for place in range(k):
            z[i, anchors[i, place]] = np.exp(-(squared[i, place] - squared[i, 0]) / (2 * sigma**2))
        z[i] /= z[i].sum()
    return z


def dense_tags(squared, anchors, n_anchors):
    """Spec section 2, step 4, with N x N matrices."""
    s = {}
    for k in (3, 4, 5):
        z = dense_graph(squared, anchors, n_anchors, k)
        total = z.sum(0)
        inverse = np.array([1 / value if value > 0 else 0.0 for value in total])
        s[k] = (z @ np.diag(inverse) @ z.T > 1e-5).astype(int)
    return 2 * (s[5] - s[4]) + s[3]


def to_dense(blocks, n_videos):
    """The matrix behind blocks of rows."""
    dense, row = np.zeros((n_videos, n_videos), int), 0
    for block in blocks:
        assert (block.indptr.dtype, block.indices.dtype, block.tag.dtype) == (np.int64, np.int32, np.int8)
        assert (block.tag != 0).all()
        for start, stop in zip(block.indptr[:-1], block.indptr[1:], strict=True):
            assert (np.diff(block.indices[start:stop]) > 0).all()
            dense[row, block.indices[start:stop]] = block.tag[start:stop]
            row += 1
    assert row == n_videos
    return dense


def to_rows(dense):
    """One block that holds the whole matrix."""
    rows, columns = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
    return TagRows(indptr, columns.astype(np.int32), dense[rows, columns].astype(np.int8))


def latents_of(kind, n_videos=300, width=6, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n_videos, width))
    if kind == "clustered":
        x = 0.3 * x + 4 * generator.standard_normal((12, width))[generator.integers(12, size=n_videos)]
    elif kind == "heavy":
        x *= np.abs(generator.standard_t(1.2, (n_videos, 1)))
    return torch.from_numpy(x)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "bth_tiny.npz")


@pytest.fixture(scope="module")
def golden_nearest(golden):
    return nearest_anchors(
        torch.from_numpy(golden["graph/latent"]), torch.from_numpy(golden["graph/anchors"])
    )


class TestTags:
    @pytest.mark.parametrize("k", [3, 4, 5])
    def test_golden_graph(self, golden, golden_nearest, k):
        graph = anchor_graph(*golden_nearest, 12, k)
        z = np.zeros((120, 12))
        np.put_along_axis(z, graph.anchors, graph.weights, axis=1)
        np.testing.assert_allclose(z, golden[f"graph/Z{k}"], rtol=0, atol=1e-6)
        assert graph.sigma == pytest.approx(float(golden[f"graph/sigma{k}"]), rel=1e-6)

    @pytest.mark.parametrize("block", [1, 17, 120, 1000])
    def test_golden_tags(self, golden, golden_nearest, block):
        assert np.array_equal(
            to_dense(similarity_blocks(*golden_nearest, 12, block), 120), golden["graph/tags"]
        )

    def test_come_in_blocks(self):
        squared, anchors = np.ones((1001, 5)), np.tile(np.arange(5), (1001, 1))
        sizes = [len(rows.indptr) - 1 for rows in similarity_blocks(squared, anchors, 5)]
        assert sum(sizes) == 1001
        assert max(sizes) <= 250  # of N bytes each: what is dense stays small

    def test_equal_the_dense_formula(self):
        for kind in ("clustered", "gaussian", "heavy"):
            for seed, n_anchors in ((0, 25), (1, 60)):
                latents = latents_of(kind, seed=seed)
                squared, anchors = nearest_anchors(latents, latents[:n_anchors])
                tags = to_dense(similarity_blocks(squared, anchors, n_anchors, 64), len(latents))
                assert np.array_equal(tags, dense_tags(squared, anchors, n_anchors))
                assert (tags.diagonal() == 1).all()
                assert {0, 1, 2} <= set(tags.ravel())

    def test_rare_tags(self):
        """Two videos tied by a small weight come apart when a wider graph makes their common anchor popular.

        Anchor 3 is the fourth, anchor 4 the fifth of all videos but six. These have a weight of 0.01 there:
        enough to tie two videos with an anchor of their own, not with one that three hundred lean on.
        """
        squared, anchors = np.ones((306, 5)), np.tile(np.arange(5), (306, 1))
        pairs = {-1: [5, 6, 4, 7, 8], -2: [5, 6, 7, 4, 8], 3: [5, 6, 3, 7, 99]}
        for places, first in zip(pairs.values(), (0, 2, 4), strict=True):
            for i in (first, first + 1):  # 5 to 8 stand for anchors nobody else has, 99 for one of both
                anchors[i] = [place if place in (3, 4, 99) else 10 + 10 * i + place for place in places]
                far = places.index(4) if 4 in places else places.index(3)
                squared[i, far:] = 5.6
        tags = to_dense(similarity_blocks(squared, anchors, 100), 306)
        assert np.array_equal(tags, dense_tags(squared, anchors, 100))
        assert (tags[0, 1], tags[2, 3], tags[4, 5]) == (-1, -2, 3)
        assert set(tags.ravel()) >= {-2, -1, 0, 1, 3}

    def test_graph_by_hand(self):
        # The third nearest are 2 and 4 away: sigma = 3 / sqrt 2, 2 sigma^2 = 9.
        squared = np.array([[1.0, 1, 4], [7, 16, 16]])
        graph = anchor_graph(squared, np.array([[4, 0, 1], [2, 1, 0]]), 5, 3)
        assert graph.sigma == pytest.approx(3 / np.sqrt(2))
        near, far = np.exp(-3 / 9), np.exp(-1)
        expected = [[1, 1, near], [1, far, far]] / np.array([[2 + near], [1 + 2 * far]])
        np.testing.assert_allclose(graph.weights, expected, rtol=1e-12)

    def test_outliers_and_anchors_without_weight(self):
        """Video 0 is so far away that exp(-d^2 / ...) is 0 / 0; anchor 5 has only weights that underflow."""
        squared = np.ones((400, 5)) * [1, 2, 3, 4, 5.0]
        squared[0] = [1e8, 1e8 + 1, 1e8 + 2, 1e8 + 1e7, 1e8 + 2e7]
        anchors = np.tile(np.arange(5), (400, 1))
        anchors[0, 4] = 5
        squared[0, 4] = 1e12
        with np.errstate(all="raise", under="ignore"):
            tags = to_dense(similarity_blocks(squared, anchors, 6), 400)
        assert anchor_graph(squared, anchors, 6, 4).weights[0].sum() == pytest.approx(1)
        graph = anchor_graph(squared, anchors, 6, 5)
        assert graph.weights[0, 4] == 0.0  # so its column sums to 0
        assert np.array_equal(tags, dense_tags(squared, anchors, 6))

    def test_all_latents_on_their_anchors(self):
        graph = anchor_graph(np.zeros((4, 5)), np.tile(np.arange(5), (4, 1)), 5, 4)
        assert graph.sigma == 0
        assert (graph.weights == 0.25).all()

    @pytest.mark.parametrize(("n_videos", "entries"), [(99_000, 99_000), (101_000, 1)])
    def test_threshold_and_diagonal(self, n_videos, entries):
        """All videos tied to the same anchors alike: every S is 1 / N."""
        squared, anchors = np.ones((n_videos, 5)), np.tile(np.arange(5), (n_videos, 1))
        rows = next(similarity_blocks(squared, anchors, 5, 2))
        assert rows.indptr.tolist() == [0, entries, 2 * entries]
        assert (rows.tag == 1).all()
        assert rows.indices[0] == 0
        assert rows.indices[-1] == (n_videos - 1 if entries > 1 else 1)


@pytest.fixture(params=["sparse", "adj", "adj, integers"])
def stored(request, tmp_path, golden, monkeypatch):
    """A file of the golden tags in every format, several chunks long, and its tags."""
    path, tags = tmp_path / "sim_matrix.h5", golden["graph/tags"].copy()
    tags[5, 5:8] = -2, -1, 3
    tags[7] = 0
    monkeypatch.setattr(bth.similarity, "CHUNK", 100)
    with h5py.File(path, "w") as file:
        if request.param == "sparse":
            blocks = [to_rows(tags[start : start + 50]) for start in range(0, 120, 50)]
            assert write_similarity(file, blocks) == (tags != 0).sum()
        else:
            file["adj"] = tags.astype(np.float32 if request.param == "adj" else np.int8)
    return path, tags


class TestFile:
    def test_format(self, tmp_path, golden_nearest):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            entries = write_similarity(file, similarity_blocks(*golden_nearest, 12, 50))
        with h5py.File(tmp_path / "a.h5") as file:
            assert {key: (file[key].dtype, file[key].shape) for key in file} == {
                "indptr": (np.int64, (121,)),
                "indices": (np.int32, (entries,)),
                "tag": (np.int8, (entries,)),
            }

    def test_rows(self, stored):
        path, tags = stored
        with Similarity(path, n_videos=120) as similarity:
            assert len(similarity) == 120
            for videos in ([0], [7], [119], [3, 4, 5, 6, 7, 8], [0, 2, 3, 50, 51, 119], range(120)):
                rows = similarity.rows(np.array(videos))
                expected = to_rows(tags[list(videos)])
                for found, wanted in zip(rows, expected, strict=True):
                    assert np.array_equal(found, wanted)
                    assert found.dtype == wanted.dtype
            indices, tag = similarity.row(5)
            assert np.array_equal(indices, np.flatnonzero(tags[5]))
            assert np.array_equal(tag, tags[5][indices])

    def test_an_empty_matrix(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            write_similarity(file, [to_rows(np.zeros((3, 3), int))])
        with Similarity(tmp_path / "a.h5") as similarity:
            assert len(similarity.row(1)[0]) == 0

    def test_another_number_of_videos(self, stored):
        with pytest.raises(
            BadInput, match=r"sim_matrix.h5: expected the tags of 119 training videos, found 120"
        ):
            Similarity(stored[0], n_videos=119)

    def test_missing_and_damaged_files(self, tmp_path):
        with pytest.raises(BadInput, match=r"no.h5: no such similarity file"):
            Similarity(tmp_path / "no.h5")
        (tmp_path / "text.h5").write_text("no HDF5")
        with pytest.raises(BadInput, match=r"text.h5: not a readable HDF5 file"):
            Similarity(tmp_path / "text.h5")

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"tag": None}, r"no dataset 'tag', found \['indices', 'indptr'\]; expected it, or 'adj'"),
            (
                {"indptr": None, "indices": None, "tag": None},
                r"no dataset 'indptr', found \[\]; expected it, or 'adj'",
            ),
            ({"tag": np.ones((2, 2), np.int8)}, r"'tag': expected 1 axes of integers, found int8 \(2, 2\)"),
            ({"indices": np.ones(4)}, r"'indices': expected 1 axes of integers, found float64 \(4,\)"),
            ({"indptr": np.array([1, 2, 4])}, "'indptr': expected N \\+ 1 offsets"),
            ({"indptr": np.array([0, 5, 4])}, "'indptr': expected N \\+ 1 offsets"),
            ({"indptr": np.zeros(0, int)}, "'indptr': expected N \\+ 1 offsets"),
            ({"indices": np.arange(3)}, "'indices': expected 4 entries, the end of 'indptr', found 3"),
            ({"tag": np.ones(5, np.int8)}, "'tag': expected 4 entries, the end of 'indptr', found 5"),
            ({"adj": np.zeros((2, 3))}, r"'adj': expected shape \(N, N\), found \(2, 3\)"),
            ({"adj": np.zeros(4)}, "'adj': expected 2 axes of numbers, found float64"),
            ({"adj": "text"}, "'adj': expected 2 axes of numbers, found object"),
        ],
    )
    def test_broken_when_opened(self, tmp_path, change, expected):
        with pytest.raises(BadInput, match=rf"a.h5: {expected}"):
            Similarity(self.write(tmp_path, change))

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"indices": np.array([0, 2, 0, 1])}, "'indices': expected ascending numbers below 2"),
            ({"indices": np.array([-1, 1, 0, 1])}, "'indices': expected ascending numbers below 2"),
            ({"indices": np.array([1, 0, 0, 1])}, "'indices': expected ascending numbers below 2"),
            ({"indices": np.array([0, 1, 1, 1])}, "'indices': expected ascending numbers below 2"),
            ({"tag": np.array([1, 2, 0, 1])}, "'tag': expected tags of"),
            ({"tag": np.array([1, 2, 4, 1])}, "'tag': expected tags of"),
            ({"adj": np.array([[1, 0.5], [0, 1]])}, "'adj': expected tags of 0 and"),
            ({"adj": np.array([[1, np.nan], [0, 1]])}, "'adj': expected tags of 0 and"),
        ],
    )
    def test_broken_when_read(self, tmp_path, change, expected):
        with Similarity(self.write(tmp_path, change)) as similarity:
            with pytest.raises(BadInput, match=rf"a.h5: {expected}"):
                similarity.rows(np.array([0, 1]))

    @staticmethod
    def write(tmp_path, change):
        """A file of two videos, then changed."""
        with h5py.File(tmp_path / "a.h5", "w") as file:
            write_similarity(file, [to_rows(np.array([[1, 2], [-1, 1]]))])
            for key, value in change.items():
                if key in file:
                    del file[key]
                if value is not None:
                    file[key] = value
        return tmp_path / "a.h5"
