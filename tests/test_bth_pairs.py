"""Partners, disturbed frames, reading a batch: statistics, literal versions, edge cases."""

import math
from collections import Counter

import h5py
import numpy as np
import pytest
import torch

from bth.pairs import Disturbance, draw_disturbance, draw_pairs, read_disturbed
from bth.similarity import Similarity

# Row by row, every case of the spec. Columns 5 and 6 are never drawn from: -2, -1, 3 are no tags to draw.
TAGS = np.array(
    [
        [1, 1, 2, 2, 0, 0, 3],  # 0: has all: +1 from {0, 1}, -1 from {2, 3}
        [1, 1, -1, 0, 0, 3, 0],  # 1: no 2: -1 from the zeros {3, 4, 6}
        [2, 0, 0, 2, 0, -2, 0],  # 2: no 1: always -1, from {0, 3}
        [0, 3, 0, -1, 0, 3, 3],  # 3: neither 1 nor 2: always -1, from the zeros {0, 2, 4}
        [1, 1, 1, -2, 1, 3, -1],  # 4: neither 2 nor 0: always +1, from {0, 1, 2, 4}
        [3, 3, -1, -1, -2, -2, 3],  # 5: nothing to draw: itself, +1
        [0, 0, 0, 0, 0, 0, 0],  # 6: nothing stored: -1 from all
    ]
)
EXPECTED = [
    {(0, 1): 1 / 4, (1, 1): 1 / 4, (2, -1): 1 / 4, (3, -1): 1 / 4},
    {(0, 1): 1 / 4, (1, 1): 1 / 4, (3, -1): 1 / 6, (4, -1): 1 / 6, (6, -1): 1 / 6},
    {(0, -1): 1 / 2, (3, -1): 1 / 2},
    {(0, -1): 1 / 3, (2, -1): 1 / 3, (4, -1): 1 / 3},
    {(0, 1): 1 / 4, (1, 1): 1 / 4, (2, 1): 1 / 4, (4, 1): 1 / 4},
    {(5, 1): 1.0},
    {(video, -1): 1 / 7 for video in range(7)},
]


def within(count, n, probability):
    """A count of n independent events is within four and a half standard deviations of its mean."""
    deviation = math.sqrt(n * probability * (1 - probability))
    assert abs(count - n * probability) <= 4.5 * deviation, (count / n, probability)


def similarity_of(path, tags):
    with h5py.File(path, "w") as file:
        file["adj"] = np.asarray(tags, np.float32)
    return Similarity(path)


@pytest.fixture
def similarity(tmp_path):
    with similarity_of(tmp_path / "sim_matrix.h5", TAGS) as opened:
        yield opened


def literal_pairs(tags, videos, rng):
    """Spec section 3, one video at a time, with the same two numbers for each."""
    coins, places = rng.random(len(videos)), rng.random(len(videos))
    pairs = []
    for video, coin, place in zip(videos, coins, places, strict=True):
        of_tag = {tag: [j for j, found in enumerate(tags[video]) if found == tag] for tag in (0, 1, 2)}
        positive, negative = of_tag[1], of_tag[2] or of_tag[0]
        wanted = positive if coin < 0.5 else negative
        if not positive and not negative:
            pairs.append((video, 1))
            continue
        candidates = wanted or positive or negative
        pairs.append((candidates[int(place * len(candidates))], 1 if candidates is positive else -1))
    return pairs


class TestPairs:
    @pytest.mark.parametrize("video", range(7))
    def test_every_case_at_its_rate(self, similarity, video):
        n = 20000
        partner, target = draw_pairs(similarity, np.full(n, video), np.random.default_rng(video))
        counts = Counter(zip(partner.tolist(), target.tolist(), strict=True))
        assert counts.keys() == EXPECTED[video].keys()
        for pair, probability in EXPECTED[video].items():
            within(counts[pair], n, probability)

    @pytest.mark.parametrize("block", [1, 7, 1000])
    def test_equals_the_literal_version_in_any_block(self, tmp_path, block):
        generator = np.random.default_rng(0)
        tags = generator.choice([-2, -1, 0, 1, 2, 3], p=[0.02, 0.02, 0.6, 0.2, 0.14, 0.02], size=(60, 60))
        tags[:20][tags[:20] == 2] = 0  # rows without a 2
        tags[10:30][tags[10:30] == 1] = 3  # without a 1
        videos = generator.permutation(np.concatenate([np.arange(60), [3, 3, 59]]))
        with similarity_of(tmp_path / "a.h5", tags) as similarity:
            partner, target = draw_pairs(similarity, videos, np.random.default_rng(5), block)
        assert (partner.dtype, target.dtype) == (np.int64, np.float32)
        expected = literal_pairs(tags, videos, np.random.default_rng(5))
        assert list(zip(partner.tolist(), target.tolist(), strict=True)) == expected

    def test_is_a_function_of_the_generator(self, similarity):
        videos = np.tile(np.arange(7), 30)
        first, again, other = (draw_pairs(similarity, videos, np.random.default_rng(s))[0] for s in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_coin_and_partner_are_independent(self, tmp_path):
        """Of two candidates of each kind both are as likely."""
        n = 40000
        with similarity_of(tmp_path / "a.h5", [[1, 1, 2, 2]] * 4) as similarity:
            partner, target = draw_pairs(similarity, np.zeros(n, int), np.random.default_rng(0))
        within((target == 1).sum(), n, 0.5)
        for video in range(4):
            within((partner == video).sum(), n, 0.25)


class TestDisturbance:
    def test_rates(self):
        shape = (2, 3000, 10)
        plan = draw_disturbance(shape, 40, np.random.default_rng(0))
        n = 60000
        within(plan.zero.sum(), n, 0.12)
        within(plan.replace.sum(), n, 0.015)
        assert not (plan.zero & plan.replace).any()
        assert plan.zero.shape == plan.replace.shape == plan.video.shape == plan.frame.shape == shape
        replaced = int(plan.replace.sum())
        for values, size in ((plan.video, 40), (plan.frame, 10)):
            counts = np.bincount(values[plan.replace], minlength=size)
            assert len(counts) == size
            for count in counts:
                within(count, replaced, 1 / size)

    def test_frames_and_both_videos_are_independent(self):
        plan = draw_disturbance((2, 20000, 3), 5, np.random.default_rng(1))
        within((plan.zero[0] & plan.zero[1]).sum(), 60000, 0.12**2)
        within((plan.zero[:, :, 0] & plan.zero[:, :, 1]).sum(), 40000, 0.12**2)

    def test_is_a_function_of_the_generator(self):
        first, again, other = (draw_disturbance((9, 8), 5, np.random.default_rng(seed)) for seed in (3, 3, 4))
        assert np.array_equal(first.zero, again.zero)
        assert np.array_equal(first.video, again.video)
        assert not np.array_equal(first.zero, other.zero)

    def test_batches_are_parts_of_the_pass(self):
        plan = draw_disturbance((2, 10, 4), 5, np.random.default_rng(0))
        for positions in (slice(3, 7), np.array([9, 0])):
            part = plan.batch(positions)
            for name in ("zero", "replace", "video", "frame"):
                assert np.array_equal(getattr(part, name), getattr(plan, name)[:, positions])
        single = Disturbance(plan.zero[0], plan.replace[0], plan.video[0], plan.frame[0])
        assert np.array_equal(single.batch(slice(3, 7)).zero, plan.zero[0, 3:7])


class TestReadDisturbed:
    @pytest.mark.parametrize("shape", [(2, 30), (60,)])
    def test_by_a_single_read(self, shape):
        torch.manual_seed(0)
        store = torch.randn(50, 8, 3)
        before, asked = store.clone(), []

        def read(rows):
            asked.append(rows)
            return store[torch.from_numpy(rows)]

        generator = np.random.default_rng(0)
        videos = generator.integers(0, 20, size=shape)
        plan = draw_disturbance((*shape, 8), 50, generator)
        assert plan.zero.any()
        assert plan.replace.any()
        frames, places, replacement = read_disturbed(read, videos, plan)

        assert [rows.tolist() for rows in asked] == [[*videos.ravel(), *plan.video[plan.replace]]]
        assert torch.equal(frames, store[torch.from_numpy(videos.ravel())])
        n_zeroed = len(places) - len(replacement)
        assert places[:n_zeroed].tolist() == np.flatnonzero(plan.zero).tolist()
        assert places[n_zeroed:].tolist() == np.flatnonzero(plan.replace).tolist()
        for frame, video, number in zip(
            replacement, plan.video[plan.replace], plan.frame[plan.replace], strict=True
        ):
            assert torch.equal(frame, store[video, number])
        assert torch.equal(store, before)

    def test_a_batch_is_its_part_of_the_pass(self):
        torch.manual_seed(0)
        store, videos = torch.randn(30, 5, 2), np.random.default_rng(0).permutation(30)
        plan = draw_disturbance((30, 5), 30, np.random.default_rng(1))

        def read(rows):
            return store[torch.from_numpy(rows)]

        def disturbed(rows):
            frames, places, replacement = read_disturbed(read, videos[rows], plan.batch(rows))
            n_zeroed = len(places) - len(replacement)
            seen = frames.flatten(0, 1).clone()
            seen[places[:n_zeroed]], seen[places[n_zeroed:]] = 0, replacement
            return frames, seen.view_as(frames)

        whole = disturbed(slice(30))
        parts = [disturbed(slice(start, start + 7)) for start in range(0, 30, 7)]
        for one, many in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(one, torch.cat(many))
        assert not torch.equal(*whole)
