"""Anchors and the nearest of them: golden numbers, and brute force in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from synthetic import GOLDEN

import bth.prepare
from bth.prepare import MAX_UPDATES, find_anchors, nearest_anchors
from formats.files import BadInput


def brute_force(latents, anchors, k):
    """All distances in float64, a tie to the lowest index."""
    difference = latents.double().numpy()[:, None] - anchors.double().numpy()  # (N, m, H)
    squared = (difference**2).sum(-1)
    order = squared.argsort(1, kind="stable")[:, :k]
    return np.take_along_axis(squared, order, 1), order


def test_golden_nearest_anchors():
    golden = np.load(GOLDEN / "bth_tiny.npz")
    latents, anchors = (torch.from_numpy(golden[f"graph/{key}"]) for key in ("latent", "anchors"))
    for k in (3, 4, 5):
        _, indices = nearest_anchors(latents, anchors, k)
        assert indices.dtype == np.int64
        assert np.array_equal(indices, golden[f"graph/pos{k}"])


@pytest.mark.parametrize("offset", [0.0, 3000.0])
@pytest.mark.parametrize("n_anchors", [5, 40])
def test_nearest_anchors_equal_brute_force(offset, n_anchors):
    """Far from the origin float32 scores lose the small differences between distances."""
    torch.manual_seed(0)
    latents, anchors = torch.randn(1500, 8) + offset, torch.randn(n_anchors, 8) + offset
    squared, indices = nearest_anchors(latents, anchors)
    expected, order = brute_force(latents, anchors, 5)
    assert squared.dtype == np.float64
    assert np.array_equal(indices, order)
    np.testing.assert_allclose(squared, expected, rtol=1e-12)


def test_an_outlier_among_the_anchors_spoils_nothing():
    torch.manual_seed(0)
    latents, anchors = torch.randn(500, 16), torch.randn(60, 16)
    anchors[7] = 1e6
    assert np.array_equal(nearest_anchors(latents, anchors)[1], brute_force(latents, anchors, 5)[1])


def test_anchors_that_float32_cannot_tell_apart():
    torch.manual_seed(0)
    anchors = torch.cat([torch.ones(7, 3), -torch.ones(7, 3)]).double() + 1e-7 * torch.randn(14, 3)
    latents = torch.randn(200, 3).double() + 1
    indices = nearest_anchors(latents, anchors)[1]
    assert np.array_equal(indices, brute_force(latents, anchors, 5)[1])


def test_ties_go_to_the_lowest_index():
    anchors = torch.zeros(7, 2)
    anchors[0] = 5.0
    squared, indices = nearest_anchors(torch.zeros(3, 2), anchors)
    assert (indices == [1, 2, 3, 4, 5]).all()
    assert (squared == 0).all()


class TestFindAnchors:
    def test_finds_the_clusters(self):
        torch.manual_seed(0)
        centers = 100 * torch.randn(6, 4)
        latents = centers.repeat_interleave(50, 0) + torch.randn(300, 4)
        anchors = find_anchors(latents, 60, np.random.default_rng(0))
        assert 5 <= len(anchors) <= 60
        assert anchors.dtype == torch.float32
        near, _ = nearest_anchors(centers, anchors, 1)
        assert near.max() < 25  # every cluster has an anchor within it

    def test_asks_kmeans_for_what_the_spec_says(self, monkeypatch):
        seen = {}

        def kmeans(x, n_clusters, **options):
            seen.update(options, x=x, n_clusters=n_clusters)
            return SimpleNamespace(centers=options["init"])

        monkeypatch.setattr(bth.prepare, "kmeans", kmeans)
        latents = torch.arange(40.0).reshape(40, 1)
        find_anchors(latents, 40, np.random.default_rng(1))
        assert (seen["max_iter"], seen["empty"], seen["n_clusters"], MAX_UPDATES) == (16, "drop", 40, 16)
        assert torch.equal(seen["x"], latents)
        assert sorted(seen["init"].flatten().tolist()) == latents.flatten().tolist()  # distinct videos ...
        assert not torch.equal(seen["init"], latents)  # ... in random order
        first = seen["init"]
        find_anchors(latents, 40, np.random.default_rng(1))
        assert torch.equal(first, seen["init"])
        find_anchors(latents, 40, np.random.default_rng(2))
        assert not torch.equal(first, seen["init"])

    def test_empty_clusters_are_dropped(self):
        latents = torch.arange(7.0).repeat(10)[:, None] * torch.ones(3)  # 7 distinct points, 10 times each
        anchors = find_anchors(latents, 50, np.random.default_rng(0))
        assert sorted(anchors[:, 0].tolist()) == pytest.approx(range(7))

    @pytest.mark.parametrize("n_anchors", [4, 0, 11])
    def test_impossible_numbers(self, n_anchors):
        with pytest.raises(BadInput, match=rf"n_anchors: expected 5 to 10, .* found {n_anchors}$"):
            find_anchors(torch.randn(10, 3), n_anchors, np.random.default_rng(0))

    def test_fewest_and_most_anchors(self):
        for n_anchors in (5, 10):
            find_anchors(torch.arange(10.0)[:, None], n_anchors, np.random.default_rng(0))

    def test_too_few_left(self):
        latents = torch.arange(4.0).repeat(5)[:, None]
        with pytest.raises(BadInput, match="leave at least 5, found 4 of 12"):
            find_anchors(latents, 12, np.random.default_rng(0))

    def test_latents_that_are_not_finite(self):
        latents = torch.randn(20, 3)
        latents[7, 1] = torch.nan
        with pytest.raises(BadInput, match="latents: expected finite values"):
            find_anchors(latents, 5, np.random.default_rng(0))
