"""What networks share, each by hand or against a loop; whole networks are in the tests of the systems."""

import math

import pytest
import torch
import torch.nn.functional as F
from synthetic import close

from layers import (
    HashLayer,
    Places,
    attend,
    contrastive_loss,
    position_encoding,
    take_frames,
    video_embedding,
    visible_frames,
)


class TestAttention:
    def test_equals_a_loop(self):
        torch.manual_seed(0)
        query, key, value = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
        found = attend(query, key, value)
        for video in range(2):
            for head in range(3):
                for token in range(4):
                    q = query[video, head, token]
                    shares = torch.stack([(q @ k / math.sqrt(5)).exp() for k in key[video, head]])
                    mixed = sum(s * v for s, v in zip(shares / shares.sum(), value[video, head], strict=True))
                    close(found[video, head, token], mixed, 1e-5)

    def test_a_token_alone_is_attended_to_whole_and_without_noise(self):
        torch.manual_seed(0)
        query, key, value = (torch.randn(4, 4, 1, 16, requires_grad=True) for _ in range(3))
        found = attend(query, key, value)
        assert torch.equal(found, value)
        found.square().sum().backward()
        assert (query.grad == 0).all()
        assert (key.grad == 0).all()
        assert torch.equal(value.grad, 2 * value)


class TestPositions:
    def test_by_hand(self):
        table = position_encoding(600, 4)
        assert table.shape == (600, 4)
        for position in (0, 1, 599):  # beyond BTH's published table, too
            angles = position, position / 100
            close(table[position], [f(angle) for angle in angles for f in (math.sin, math.cos)], 1e-4)


class TestViews:
    frames = torch.arange(2 * 4.0).view(2, 4, 1)
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)

    def test_places_are_in_temporal_order(self):
        places = Places.of(self.frames, self.mask)
        assert places.visible.tolist() == [[1, 3], [0, 1], [0, 3], [2, 3]]
        assert places.hidden.tolist() == [[0, 2], [2, 3], [1, 2], [0, 1]]

    def test_frames_are_those_of_their_video(self):
        places = Places.of(self.frames, self.mask)
        assert take_frames(self.frames, places.hidden)[..., 0].tolist() == [[0, 2], [6, 7], [1, 2], [4, 5]]
        assert take_frames(self.frames, places.hidden[:2])[..., 0].tolist() == [[0, 2], [6, 7]]
        assert take_frames(self.frames, torch.tensor([[3, 3, 0]]))[..., 0].tolist() == [[3, 3, 0]]

    def test_visible_frames_keep_their_order(self):
        found = visible_frames(self.frames, self.mask)
        assert found[..., 0].tolist() == [[1, 3], [4, 5], [0, 3], [6, 7]]

    def test_masks_must_hide_equally_many(self):
        with pytest.raises(AssertionError):
            visible_frames(torch.randn(2, 3, 1), torch.tensor([[1, 0, 0], [1, 1, 0]], dtype=torch.bool))


class TestHash:
    def test_by_hand(self):
        layer = HashLayer(2, 2)
        with torch.no_grad():
            layer.linear.weight.copy_(torch.eye(2))
            layer.linear.bias.copy_(torch.tensor([0.0, 1.0]))
        codes = layer(torch.tensor([[[3.0, 1.0], [1.0, 3.0], [2.0, 1.0]]]))  # the last: v = 0 gives -1
        assert codes.tolist() == [[[1, -1], [-1, 1], [-1, -1]]]

    def test_an_embedding_is_the_mean_code_of_unit_length(self):
        codes = torch.tensor([[[1.0, 1, -1], [1, -1, -1]], [[1, 1, 1], [-1, -1, -1]]])
        close(video_embedding(codes), [[0.5**0.5, 0, -(0.5**0.5)], [0, 0, 0]], 1e-6)


class TestContrastive:
    @staticmethod
    def literal(one, two, temperature, tau):
        h = torch.cat([one, two])
        size, half = len(h), len(one)
        n, loss = size - 2, 0.0
        for i in range(size):
            j = (i + half) % size
            pos = (h[i] @ h[j] / temperature).exp()
            neg = sum((h[i] @ h[k] / temperature).exp() for k in range(size) if k not in (i, j))
            ng = torch.clamp((neg - tau * n * pos) / (1 - tau), min=n * math.exp(-1 / temperature))
            loss = loss - (pos / (pos + ng)).log() / size
        return loss

    @pytest.mark.parametrize("tau", [0.0, 0.1, 0.6])
    def test_equals_a_loop(self, tau):
        torch.manual_seed(0)
        views = [F.normalize(torch.randn(4, 8), dim=-1).requires_grad_() for _ in range(2)]
        ours, expected = contrastive_loss(*views, 0.5, tau), self.literal(*views, 0.5, tau)
        close(ours, expected, 1e-6)
        for a, b in zip(torch.autograd.grad(ours, views), torch.autograd.grad(expected, views), strict=True):
            close(a, b, 1e-5)

    def test_floor_by_hand(self):
        # All embeddings equal: pos = e^2, neg = 2 e^2, n = 2; tau 0.9 makes (neg - tau n pos) / (1 - tau) =
        # (2 - 1.8) e^2 / 0.1 = 2 e^2. Opposite pairs: pos = e^2, neg = 2 e^-2, and the floor is n e^-2.
        x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        close(contrastive_loss(x, x, 0.5, 0.9), math.log(3), 1e-5)
        y = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        close(contrastive_loss(y, y, 0.5, 0.5), math.log(1 + 2 * math.exp(-4)), 1e-5)

    def test_a_batch_of_one_video_is_finite(self):
        # The last, partial batch may hold one video: no negatives, Ng = 0, loss 0.
        h = F.normalize(torch.randn(1, 8), dim=-1)
        assert contrastive_loss(h, h, 0.5, 0.1) == 0
