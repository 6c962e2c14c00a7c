"""BTH's network, losses and published checkpoints: golden numbers, literal versions, dropout."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import GOLDEN, close

from bench.step import bth_ours_and_direct
from bth.model import (
    BTH,
    DROPOUT,
    PUBLISHED_NAMES,
    Attention,
    Dropout,
    FeedForward,
    Norm,
    cluster_loss,
    drop,
    from_state,
    load_published,
    mask_loss,
    neighborhood_loss,
)
from formats import processor
from formats.files import BadInput
from layers import position_encoding


def within(count, n, probability):
    """A count of n independent events is within four and a half standard deviations of its mean."""
    deviation = math.sqrt(n * probability * (1 - probability))
    assert abs(count - n * probability) <= 4.5 * deviation, (count / n, probability)


@pytest.fixture(scope="module")
def golden():
    return {key: torch.from_numpy(np.array(value)) for key, value in np.load(GOLDEN / "bth_tiny.npz").items()}


@pytest.fixture
def net(golden):
    """The golden network at its start, dropout off."""
    return load_published(published_state(golden)).eval()


def published_state(golden):
    prefix = "weight/"
    return {key[len(prefix) :]: value.clone() for key, value in golden.items() if key.startswith(prefix)}


def losses(net, golden):
    """Mask, neighbourhood, cluster and total loss, both videos as one batch."""
    n_pairs = len(golden["frames1"])
    out = net(torch.cat([golden["masked1"], golden["masked2"]]))
    mask = mask_loss(out.reconstruction, torch.cat([golden["frames1"], golden["frames2"]]))
    neighborhood = neighborhood_loss(out.codes[:n_pairs], out.codes[n_pairs:], golden["is_similar"])
    cluster = cluster_loss(out.hidden[:n_pairs], golden["anchor1"])
    cluster = cluster + cluster_loss(out.hidden[n_pairs:], golden["anchor2"])
    return mask, neighborhood, cluster, 0.92 * mask + 0.08 * neighborhood + 0.8 * cluster


class TestGolden:
    def test_outputs(self, net, golden):
        out = net(golden["masked1"])
        close(out.hidden, golden["out/hidden1"], 1e-5)
        close(out.reconstruction, golden["out/reconstruction1"], 1e-5)
        assert torch.equal(out.codes, golden["out/frame_codes1"])
        assert torch.equal(net.hash(golden["masked1"]).to(torch.int8), golden["out/code1"])
        close(net.latent(golden["masked1"]), golden["out/hidden1"].mean(1), 1e-5)

    def test_losses(self, net, golden):
        names = ("mask_loss", "neighborhood_loss", "cluster_loss", "total")
        for name, loss in zip(names, losses(net, golden), strict=True):
            close(loss, golden[f"out/{name}"], 1e-5)

    def test_gradients(self, net, golden):
        losses(net, golden)[-1].backward()
        ours = dict(net.named_parameters())
        gradients = {key[len("grad/") :]: value for key, value in golden.items() if key.startswith("grad/")}
        assert {PUBLISHED_NAMES[name] for name in gradients} == ours.keys()
        for name, expected in gradients.items():
            # Softmax ignores a shift common to all keys: the true gradient of their bias is zero.
            floor = 1e-7 if PUBLISHED_NAMES[name] == "attention.key.bias" else 0.0
            close(ours[PUBLISHED_NAMES[name]].grad, expected, 1e-4, floor)

    def test_adam_trajectory_ends_at_the_published_checkpoint(self, net, golden):
        adam = torch.optim.Adam(net.parameters(), lr=golden["lr"].item(), fused=True)
        for expected in golden["trajectory/loss_without_dropout"]:
            loss = losses(net, golden)[-1]
            close(loss, expected, 1e-3)
            adam.zero_grad()
            loss.backward()
            adam.step()
        published = load_published(GOLDEN / "bth_tiny.pth").eval()
        for name, value in published.state_dict().items():
            if name != "attention.key.bias":  # Adam on the noise of a zero gradient
                close(net.state_dict()[name], value, 1e-3)
        assert torch.equal(net.hash(golden["frames1"]), published.hash(golden["frames1"]))

    def test_position_table(self, golden):
        close(position_encoding(512, 32), golden["weight/bert.embedding.position.pe"][0], 1e-6)


def literal_hidden(net, frames):
    """Spec section 1, dropout off, one video and one frame at a time."""
    state = {name: value.double() for name, value in net.state_dict().items()}

    def linear(name, x):
        return state[f"{name}.weight"] @ x + state[f"{name}.bias"]

    def norm(name, x):
        mean = x.sum() / len(x)
        std = math.sqrt(((x - mean) ** 2).sum() / (len(x) - 1))
        return state[f"{name}.weight"] * (x - mean) / (std + 1e-6) + state[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    width = net.sizes["hidden_size"]
    videos = []
    for video in frames.double():
        rows = []
        for position, frame in enumerate(video):
            table = []
            for column in range(width):
                angle = position / 10000 ** (2 * (column // 2) / width)
                table.append(math.cos(angle) if column % 2 else math.sin(angle))
            rows.append(linear("embed", frame) + torch.tensor(table, dtype=torch.float64))
        normed = [norm("attention_norm", e) for e in rows]
        query, key, value = (
            [linear(f"attention.{part}", x) for x in normed] for part in ("query", "key", "value")
        )
        attended = []
        for q in query:
            weights = torch.stack([q @ k / math.sqrt(width) for k in key]).softmax(0)
            mixed = sum(w * v for w, v in zip(weights, value, strict=True))
            attended.append(linear("attention.output", mixed))
        rows = [e + a for e, a in zip(rows, attended, strict=True)]
        inner = [gelu(linear("feed_forward.expand", norm("feed_forward_norm", e))) for e in rows]
        videos.append([e + linear("feed_forward.contract", x) for e, x in zip(rows, inner, strict=True)])
    return torch.stack([torch.stack(rows) for rows in videos])


class TestNetwork:
    @pytest.mark.parametrize("n_frames", [1, 7])
    def test_equals_the_formulas(self, n_frames):
        torch.manual_seed(0)
        net = BTH(9, 6, 4).eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(torch.randn(parameter.shape))
        frames = torch.randn(3, n_frames, 9)
        out = net(frames)
        hidden = literal_hidden(net, frames)
        close(out.hidden, hidden, 1e-5)
        v = hidden @ net.hash_layer.weight.double().T + net.hash_layer.bias.double()
        assert torch.equal(out.codes, torch.where(v > 0, 1.0, -1.0))
        close(out.reconstruction, out.codes @ net.restore.weight.T + net.restore.bias, 1e-5)

    def test_shapes_types_and_defaults(self):
        net = BTH(10)
        out = net(torch.randn(2, 5, 10))
        assert out.codes.shape == (2, 5, 64)
        assert out.reconstruction.shape == (2, 5, 10)
        assert out.hidden.shape == (2, 5, 256)
        assert all(part.dtype == torch.float32 for part in out)
        assert not any("position" in name or "pe" in name.split(".") for name in net.state_dict())
        assert len(list(net.buffers())) == 0

    def test_starts_as_pytorch_does(self):
        torch.manual_seed(1)
        net = BTH(8, 4, 2)
        torch.manual_seed(1)
        assert torch.equal(net.embed.weight, torch.nn.Linear(8, 4).weight)
        for norm in (net.attention_norm, net.feed_forward_norm):
            assert torch.equal(norm.weight, torch.ones(4))
            assert torch.equal(norm.bias, torch.zeros(4))

    def test_norm_by_hand(self):
        norm = Norm(3)
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
            norm.bias.copy_(torch.tensor([0.0, 0.0, 10.0]))
        close(norm(torch.tensor([[1.0, 2.0, 3.0]])), [[-1, 0, 13]], 1e-5)  # std 1, the biased one is 0.816
        tiny = torch.tensor([[-1e-6, 0.0, 1e-6]])  # std 1e-6 is doubled by eps
        close(norm(tiny), [[-0.5, 0, 11.5]], 1e-5)
        constant = torch.full((1, 3), 7.0, requires_grad=True)
        norm(constant).sum().backward()
        assert constant.grad.isfinite().all()

    def test_a_video_longer_than_the_published_table(self):
        assert BTH(3, 4, 2)(torch.randn(1, 520, 3)).codes.shape == (1, 520, 2)

    def test_code_is_the_sign_of_the_mean_and_zero_on_a_tie(self):
        torch.manual_seed(0)
        net, frames = BTH(5, 8, 6).eval(), 5 * torch.randn(20, 2, 5)
        codes = net(frames).codes
        assert torch.equal(net.hash(frames), codes.sum(1).sign())
        assert set(net.hash(frames).unique().tolist()) == {-1, 0, 1}

    def test_hash_and_latent_never_drop(self):
        torch.manual_seed(0)
        net, frames = BTH(5, 8, 6), torch.randn(4, 3, 5)
        assert net.training
        in_training = net.hash(frames), net.latent(frames)
        assert net.training
        net.eval()
        assert torch.equal(in_training[0], net.hash(frames))
        assert torch.equal(in_training[1], net.latent(frames))
        close(net.latent(frames), net(frames).hidden.mean(1), 1e-6)

    def test_autocast_keeps_hidden_frames_and_codes_in_float32(self, net, golden):
        with torch.autocast("cpu", torch.bfloat16):
            out = net(golden["masked1"])
            assert mask_loss(out.reconstruction, golden["frames1"]).dtype == torch.float32
        assert out.hidden.dtype == out.codes.dtype == torch.float32
        close(out.hidden, golden["out/hidden1"], 0.05)

    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [
            ((8, 5, 4), "hidden_size: expected an even number, found 5"),
            ((0, 4, 4), "input_size: expected at least 1, found 0"),
            ((8, 4, 0), "hashcode_size: expected at least 1, found 0"),
        ],
    )
    def test_impossible_sizes(self, sizes, expected):
        with pytest.raises(BadInput, match=expected):
            BTH(*sizes)


def disturbed_batch(n_videos=6, n_frames=5, width=40):
    """Clean frames, places and replacements, and the disturbed copy that they stand for."""
    torch.manual_seed(0)
    frames = torch.randn(n_videos, n_frames, width) + 2
    places = torch.randperm(n_videos * n_frames)[:9]
    replacement = torch.randn(4, width)
    disturbed = frames.flatten(0, 1).clone()
    disturbed[places[:5]], disturbed[places[5:]] = 0, replacement
    return frames, places, replacement, disturbed.view_as(frames)


class TestMasked:
    """The step without disturbed or restored frames, against the network and the loss as written."""

    @pytest.mark.parametrize("onednn", [False, True])
    @pytest.mark.parametrize("changed", [True, False])
    def test_equals_forward_and_mask_loss(self, net, monkeypatch, changed, onednn):
        monkeypatch.setattr(processor, "LARGE_PRODUCT", 1)
        monkeypatch.setattr(processor, "prefers_onednn", lambda: onednn)
        frames, places, replacement, disturbed = disturbed_batch()
        if not changed:
            places, replacement, disturbed = places[:0], replacement[:0], frames
        clean = frames.clone()
        found = net.masked(frames, places, replacement)
        ours = torch.autograd.grad(found.loss + found.hidden.square().mean(), list(net.parameters()))
        out = net(disturbed)
        loss = mask_loss(out.reconstruction, frames)
        expected = torch.autograd.grad(loss + out.hidden.square().mean(), list(net.parameters()))
        assert torch.equal(found.codes, out.codes)
        close(found.hidden, out.hidden, 1e-5)
        close(found.loss, loss, 1e-5)
        for (name, _), one, other in zip(net.named_parameters(), ours, expected, strict=True):
            close(one, other, 1e-4, floor=1e-7 if name == "attention.key.bias" else 0.0)
        assert torch.equal(frames, clean)

    def test_restored_frames_far_from_zero_keep_their_digits(self):
        """The loss is a small difference of large sums, here a ten-thousandth of them."""
        torch.manual_seed(0)
        net = BTH(4096, 16, 64).eval()
        frames = 10 + 0.1 * torch.randn(64, 25, 4096)
        torch.nn.init.constant_(net.restore.bias, 10)
        torch.nn.init.normal_(net.restore.weight, std=0.001)
        nothing = torch.empty(0, dtype=torch.long), torch.empty(0, 4096)
        with torch.no_grad():
            reconstruction = net(frames).reconstruction.double()
            close(net.masked(frames, *nothing).loss, mask_loss(reconstruction, frames.double()), 1e-4)

    def test_bfloat16(self, net):
        frames, places, replacement, _ = disturbed_batch()
        expected = net.masked(frames, places, replacement)
        net.bfloat16 = True
        found = net.masked(frames, places, replacement)
        assert all(part.dtype == torch.float32 for part in found)
        close(found.hidden, expected.hidden, 0.05)
        close(found.loss, expected.loss, 0.05)
        found.loss.backward()
        assert all(weight.grad.dtype == torch.float32 for weight in net.parameters())

    def test_drops_in_training_alone(self, net):
        batch = disturbed_batch()[:3]
        assert torch.equal(net.masked(*batch).hidden, net.masked(*batch).hidden)
        assert not torch.equal(net.train().masked(*batch).hidden, net.masked(*batch).hidden)


@pytest.mark.parametrize("name", ["bth-mask", "bth-pairs"])
def test_losses_and_gradients_of_the_direct_formulation(name):
    """Of the bench's."""
    ours, direct = bth_ours_and_direct(name, (40, 32, 16), n_videos=6, n_frames=5)
    for each in (ours, direct):
        each.net.eval()
        each.value = each.loss()
        each.value.backward()
    close(ours.value, direct.value.detach(), 1e-5)
    close(ours.loss_of_restored_frames(), direct.value.detach(), 1e-5)
    for (key, parameter), other in zip(
        sorted(ours.net.named_parameters()), sorted(direct.net.named_parameters()), strict=True
    ):
        close(parameter.grad, other[1].grad, 1e-4, floor=1e-7 if key == "attention.key.bias" else 0.0)


class TestDropout:
    """Every place of the spec, seen through what it does to known values."""

    def test_off_in_eval(self, net, golden):
        assert torch.equal(net(golden["masked1"]).hidden, net(golden["masked1"]).hidden)
        assert not torch.equal(net.train()(golden["masked1"]).hidden, net.eval()(golden["masked1"]).hidden)

    def test_entries_are_independent_and_seeded(self):
        torch.manual_seed(0)
        ones = torch.ones(401, 1001)  # a number that is no multiple of four
        dropped = drop(ones, Dropout(DROPOUT))
        zero = dropped == 0
        within(zero.sum(), ones.numel(), 0.1)
        close(dropped[~zero], torch.full_like(dropped[~zero], 1 / 0.9), 1e-6)
        for lag in (1, 2, 3, 4):  # of the entries that share a draw, or not
            within((zero.flatten()[lag:] & zero.flatten()[:-lag]).sum(), ones.numel() - lag, 0.01)
        assert not torch.equal(dropped, drop(ones, Dropout(DROPOUT)))
        torch.manual_seed(0)
        assert torch.equal(dropped, drop(ones, Dropout(DROPOUT)))

    def test_of_the_attention_weights(self):
        torch.manual_seed(0)
        attention = Attention(2)
        with torch.no_grad():
            attention.value.weight.zero_()
            attention.value.bias.fill_(1)
            attention.output.weight.copy_(torch.eye(2))
            attention.output.bias.fill_(3)
        # Of a single frame the weight is 1, or dropped.
        out = attention(torch.randn(20000, 1, 2), Dropout(DROPOUT))[:, 0, 0] - 3
        within((out == 0).sum(), 20000, 0.1)
        close(out[out != 0], torch.full_like(out[out != 0], 1 / 0.9), 1e-5)

    def test_inside_the_feed_forward(self):
        torch.manual_seed(0)
        layer = FeedForward(2)
        with torch.no_grad():
            for part in (layer.expand, layer.contract):
                part.weight.zero_()
                part.bias.fill_(1)
            layer.contract.weight[0, 5] = 1
        out = layer(torch.randn(20000, 1, 2), Dropout(DROPOUT))[:, 0] - 1
        assert (out[:, 1] == 0).all()
        within((out[:, 0] == 0).sum(), 20000, 0.1)
        kept = out[:, 0][out[:, 0] != 0]
        # gelu(1) in its tanh form; the exact one is 0.841345.
        close(kept, torch.full_like(kept, 0.841192 / 0.9), 1e-5)

    @pytest.mark.parametrize("branch", ["attention", "feed_forward"])
    def test_around_the_block(self, branch):
        """Embedding, branch and block output are dropped each by itself; the branch gives 1 here."""
        torch.manual_seed(0)
        net = BTH(2, 2, 2)
        with torch.no_grad():
            net.embed.weight.zero_()
            net.embed.bias.copy_(torch.tensor([5.0, 4.0]))  # with the position of frame 0: 5 in both columns
            for layer in (net.attention.output, net.feed_forward.contract):
                layer.weight.zero_()
                layer.bias.zero_()
            (net.attention.output if branch == "attention" else net.feed_forward.contract).bias.fill_(1)
        hidden = net(torch.zeros(20000, 1, 2)).hidden.flatten()
        cases = {6 / 0.81: 0.9**3, 5 / 0.81: 0.9**2 * 0.1, 1 / 0.81: 0.9**2 * 0.1, 0.0: 0.1 + 0.9 * 0.01}
        seen = 0
        for value, probability in cases.items():
            count = int(((hidden - value).abs() < 1e-5).sum())
            within(count, len(hidden), probability)
            seen += count
        assert seen == len(hidden)


class TestLosses:
    def test_mask_by_hand(self):
        frames = torch.zeros(2, 3, 4)  # both videos of one pair: 2 L D B = 24
        restored = frames.clone()
        restored[0, 0, 0], restored[1, 2, 3] = 3.0, -1.0
        close(mask_loss(restored, frames), 10 / 24, 1e-6)
        close(mask_loss(restored[:1], frames[:1]), 9 / 12, 1e-6)  # a single video: L D B = 12

    def test_neighborhood_by_hand(self):
        # hbar (1, 0) and (1, 1): product 1/2. hbar (-1, -1) and (0, 1): product -1/2.
        codes1 = torch.tensor([[[1.0, 1], [1, -1]], [[-1, -1], [-1, -1]]])
        codes2 = torch.tensor([[[1.0, 1], [1, 1]], [[1, 1], [-1, 1]]])
        close(neighborhood_loss(codes1, codes2, torch.tensor([1.0, -1.0])), 0.25, 1e-6)
        close(neighborhood_loss(codes1, codes2, torch.tensor([-1.0, -1.0])), (2.25 + 0.25) / 2, 1e-6)

    def test_cluster_by_hand(self):
        hidden = torch.tensor([[[1.0, 2], [3, 4]], [[0, 0], [0, 2]]])  # means (2, 3) and (0, 1)
        anchors = torch.tensor([[1.0, 3], [0, -1]])
        close(cluster_loss(hidden, anchors), (1 + 4) / (2 * 2), 1e-6)  # H B = 4

    def test_against_the_formulas(self):
        torch.manual_seed(0)
        n_pairs, n_frames, width, hidden_size, bits = 3, 4, 5, 6, 7
        frames, restored = torch.randn(2, 2 * n_pairs, n_frames, width)
        codes = torch.randn(2, n_pairs, n_frames, bits).sign()
        hidden, anchors = torch.randn(n_pairs, n_frames, hidden_size), torch.randn(n_pairs, hidden_size)
        target = torch.tensor([1.0, -1.0, 1.0])
        mask = sum(difference**2 for difference in (restored - frames).flatten().tolist())
        close(mask_loss(restored, frames), mask / (2 * n_frames * width * n_pairs), 1e-5)
        neighborhood = 0.0
        for i in range(n_pairs):
            hbar1, hbar2 = (sum(codes[video, i]) / n_frames for video in (0, 1))
            neighborhood += (target[i].item() - float(hbar1 @ hbar2) / bits) ** 2 / n_pairs
        close(neighborhood_loss(codes[0], codes[1], target), neighborhood, 1e-5)
        cluster = sum(float(((sum(hidden[i]) / n_frames - anchors[i]) ** 2).sum()) for i in range(n_pairs))
        close(cluster_loss(hidden, anchors), cluster / (hidden_size * n_pairs), 1e-5)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


FRAME_MAP = "bert.embedding.frame_map.weight"
W_1 = "bert.transformer_blocks.0.feed_forward.w_1.weight"


class TestLoadPublished:
    def test_every_size_is_read_off(self):
        net = load_published(str(GOLDEN / "bth_tiny.pth"))
        assert net.sizes == {"input_size": 40, "hidden_size": 32, "hashcode_size": 16}
        assert all(parameter.requires_grad for parameter in net.parameters())
        assert {parameter.device.type for parameter in net.parameters()} == {"cpu"}

    def test_unused_tables_may_be_absent_or_of_any_shape(self, golden):
        state = published_state(golden)
        state["bert.embedding.position.pe"] = torch.zeros(1)
        del state["bert.embedding.token.weight"], state["bert.embedding.segment.weight"]
        load_published(state)

    def test_the_state_dict_is_copied(self, golden):
        state = published_state(golden)
        net = load_published(state)
        state["binary.bias"].fill_(9)
        assert net.hash_layer.bias.max() < 9

    def test_half_precision_is_read_as_float32(self, golden):
        net = load_published({key: value.half() for key, value in published_state(golden).items()})
        assert all(parameter.dtype == torch.float32 for parameter in net.parameters())

    def test_the_map_names_every_parameter_once(self):
        assert sorted(PUBLISHED_NAMES.values()) == sorted(BTH(4, 4, 4).state_dict())

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda s: without(s, "binary.bias"), "binary.bias is missing"),
            (lambda s: s | {"bert.transformer_blocks.1.x": s["binary.bias"]}, "blocks.1.x is unknown"),
            (lambda s: s | {"embed.weight": s[FRAME_MAP]}, "embed.weight is unknown"),
            (lambda s: s | {7: s["binary.bias"]}, "7 is unknown"),
            (lambda s: {}, "is missing; .* is missing"),
            (lambda s: {"berthash": s}, "berthash is unknown"),
            (lambda s: s | {W_1: s[W_1][:-1]}, r"w_1.weight: expected shape \(128, 32\), found \(127, 32\)"),
            (lambda s: s | {"restore.bias": torch.zeros(41)}, r"restore.bias: expected shape \(40,\), found"),
            (lambda s: s | {FRAME_MAP: torch.zeros(32)}, "not the weights of this network"),
            (lambda s: s | {FRAME_MAP: torch.zeros(31, 40)}, "hidden_size: expected an even number"),
            (lambda s: s | {FRAME_MAP: torch.zeros(32, 0)}, "input_size: expected at least 1, found 0"),
            (lambda s: s | {"binary.bias": torch.tensor(1.0)}, r"binary.bias: expected shape \(16,\), found"),
            (lambda s: s | {"binary.bias": 3}, "binary.bias: expected a tensor, found int"),
            (
                lambda s: s | {"binary.bias": s["binary.bias"].long()},
                "floating-point values, found torch.int64",
            ),
            (lambda s: s | {W_1: s[W_1].to_sparse()}, "dense floating-point values, .* torch.sparse"),
            (lambda s: s | {W_1: s[W_1].to("meta")}, "dense floating-point values, .* on meta"),
            (lambda s: s | {"restore.bias": torch.full((40,), math.nan)}, "restore.bias: expected finite"),
            (lambda s: s | {FRAME_MAP: torch.zeros(1).expand(10**9, 10**9)}, "found a view of fewer"),
        ],
    )
    def test_wrong_state_dicts(self, golden, change, expected):
        with pytest.raises(BadInput, match=expected) as error:
            load_published(change(published_state(golden)))
        assert str(error.value).startswith("state dict: ")
        assert "\n" not in str(error.value)

    def test_errors_name_the_file(self, golden, tmp_path):
        torch.save(without(published_state(golden), "restore.bias"), tmp_path / "a.pth")
        with pytest.raises(BadInput, match=r"a\.pth: .*restore.bias is missing"):
            load_published(tmp_path / "a.pth")
        torch.save([1, 2], tmp_path / "list.pth")
        with pytest.raises(BadInput, match=r"list\.pth: .* found list"):
            load_published(tmp_path / "list.pth")

    def test_code_in_a_file_is_never_run(self, tmp_path):
        class Malicious:
            def __reduce__(self):
                return Path.touch, (tmp_path / "ran",)

        torch.save({"binary.bias": Malicious()}, tmp_path / "evil.pth")
        with pytest.raises(BadInput, match=r"evil\.pth"):
            load_published(tmp_path / "evil.pth")
        assert not (tmp_path / "ran").exists()

    def test_own_state(self, net):
        again = from_state(net.state_dict(), "x.pth")
        assert all(torch.equal(again.state_dict()[key], value) for key, value in net.state_dict().items())
        with pytest.raises(BadInput, match=r"x\.pth: .*binary.bias is unknown"):
            from_state(net.state_dict() | {"binary.bias": torch.zeros(16)}, "x.pth")
