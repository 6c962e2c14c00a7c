"""Feature files and views; the store in all its forms is in test_store.py."""

import numpy as np
import pytest
import torch
from synthetic import N_FRAMES, WIDTH, write_features

from data import FeatureStore, draw_views, generator, n_hidden_frames
from formats.files import BadInput


class TestFeatures:
    def store(self, *paths, memory="disk"):
        return FeatureStore(paths, N_FRAMES, WIDTH, memory)

    @pytest.mark.parametrize("memory", ["ram", "disk"])
    @pytest.mark.parametrize("options", [{}, {"chunks": (3, 2, 8), "compression": "gzip"}])
    @pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
    def test_files_read_as_one(self, tmp_path, memory, options, dtype):
        features = np.random.default_rng(0).standard_normal((11, N_FRAMES, WIDTH)).astype(dtype)
        write_features(tmp_path / "a.h5", features[:4], **options)
        write_features(tmp_path / "b.h5", features[4:], **options)
        store = self.store(tmp_path / "a.h5", tmp_path / "b.h5", memory=memory)
        assert len(store) == 11
        rows = np.array([10, 0, 4, 3, 3, 7])
        expected = features[rows].astype(np.float16 if dtype == "<f2" else np.float32)
        read = store.read(rows)
        assert read.dtype == (torch.float16 if dtype == "<f2" else torch.float32)
        assert torch.equal(read, torch.from_numpy(expected))

    def test_not_finite_is_named(self, tmp_path):
        features = np.zeros((5, N_FRAMES, WIDTH), np.float32)
        write_features(tmp_path / "a.h5", features)
        features[2, 3, 1] = np.nan
        write_features(tmp_path / "b.h5", features)
        store = self.store(tmp_path / "a.h5", tmp_path / "b.h5")
        store.read(np.array([0, 6]))
        with pytest.raises(BadInput, match="b.h5: video 2, frame 3: not finite"):
            store.read(np.array([7]))
        with pytest.raises(BadInput, match="b.h5: video 2, frame 3: not finite"):
            self.store(tmp_path / "a.h5", tmp_path / "b.h5", memory="ram")

    def test_mixed_types_are_named(self, tmp_path):
        write_features(tmp_path / "a.h5", np.zeros((2, N_FRAMES, WIDTH), np.float32))
        write_features(tmp_path / "b.h5", np.zeros((2, N_FRAMES, WIDTH), np.float16))
        with pytest.raises(BadInput, match=r"b.h5: float16, but .*a.h5 is float32"):
            self.store(tmp_path / "a.h5", tmp_path / "b.h5")


class TestViews:
    def views(self, n_videos, n_frames, p, *position):
        return draw_views(generator(3346, "train", *position), n_videos, n_frames, p)

    @pytest.mark.parametrize(
        ("n_frames", "p", "hidden"), [(25, 0.9, 22), (30, 0.9, 27), (25, 0.6, 15), (30, 0.6, 18)]
    )
    def test_published_numbers_of_frames(self, n_frames, p, hidden):
        assert n_hidden_frames(n_frames, p) == hidden
        masks = self.views(50, n_frames, p, 0, 0).masks
        assert (masks.sum(-1) == hidden).all()

    def test_views_are_disjoint_where_they_can_be(self):
        masks = self.views(200, 25, 0.6, 0, 0).masks
        assert not (~masks[0] & ~masks[1]).any()
        overlapping = self.views(200, 7, 0.2, 0, 0).masks  # V = 6 of 7: both see at least 5 of the same
        assert ((~overlapping[0] & ~overlapping[1]).sum(-1) == 5).all()

    def test_of_very_many_frames(self):
        masks = self.views(2, 40_000, 0.5, 0, 0).masks
        assert (masks.sum(-1) == 20_000).all()

    def test_frames_are_visible_equally_often(self):
        visible = ~self.views(20000, 10, 0.7, 0, 0).masks  # V = 3
        for view in visible:
            rate = view.float().mean(0)
            assert (rate - 0.3).abs().max() < 5 * (0.3 * 0.7 / 20000) ** 0.5
        both = (visible[0][:, 0] & visible[1][:, 1]).float().mean()  # 3/10 * 3/9
        assert abs(both - 0.1) < 5 * (0.1 * 0.9 / 20000) ** 0.5

    def test_a_function_of_the_place(self):
        first, again, other = (
            self.views(30, 10, 0.5, 4, 1),
            self.views(30, 10, 0.5, 4, 1),
            self.views(30, 10, 0.5, 4, 2),
        )
        assert np.array_equal(first.order, again.order)
        assert torch.equal(first.masks, again.masks)
        assert not torch.equal(first.masks, other.masks)
        assert sorted(first.order) == list(range(30))
        assert not np.array_equal(first.order, other.order)
