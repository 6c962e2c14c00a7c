"""ConMH's network, its loss and published checkpoints: golden numbers, a slow literal version of its spec."""

import math

import numpy as np
import pytest
import torch
from synthetic import GOLDEN, close
from torch import nn

from conmh.model import ConMH, from_state, load_published, published_names, reconstruction_loss
from formats import processor
from formats.files import BadInput
from layers import contrastive_loss, video_embedding

golden = {key: torch.from_numpy(np.array(value)) for key, value in np.load(GOLDEN / "conmh_tiny.npz").items()}
PUBLISHED = {key.removeprefix("weight/"): golden[key] for key in golden if key.startswith("weight/")}
A, TEMPERATURE, TAU, LR = golden["loss_a_T_tau_lr"].tolist()


@pytest.fixture
def net():
    """The golden network at its start."""
    return load_published(PUBLISHED)


def both(name):
    """Of both views, as one batch."""
    return torch.cat([golden[f"{name}1"], golden[f"{name}2"]])


def direct_loss(net, frames, mask):
    """From reconstructed frames."""
    out = net(frames, mask)
    contrastive = contrastive_loss(*video_embedding(out.codes).chunk(2), TEMPERATURE, TAU)
    return reconstruction_loss(out.reconstruction, frames, mask) + A * contrastive


def trained_loss(net, frames, mask):
    """As training has it."""
    out = net.masked(frames, mask)
    return out.loss + A * contrastive_loss(*out.embedding.chunk(2), TEMPERATURE, TAU)


class TestGolden:
    def test_outputs_and_losses(self, net):
        mask = both("mask")
        out, masked = net(golden["x"], mask), net.masked(golden["x"], mask)
        close(out.reconstruction, both("out/recon"), 1e-5)
        assert torch.equal(out.codes, both("out/frame_codes").float())
        close(masked.embedding, video_embedding(both("out/frame_codes").float()), 1e-6)
        for loss in (masked.loss, reconstruction_loss(out.reconstruction, golden["x"], mask)):
            close(loss, golden["out/reconstruction_loss"], 1e-5)
        contrastive = contrastive_loss(*masked.embedding.chunk(2), TEMPERATURE, TAU)
        close(contrastive, golden["out/contrastive_loss"], 1e-5)

    @pytest.mark.parametrize("loss", [direct_loss, trained_loss])
    def test_gradients(self, net, loss):
        loss(net, golden["x"], both("mask")).backward()
        weights, names = dict(net.named_parameters()), published_names(3, 2)
        assert len(weights) == len(names) == 81
        for theirs, ours in names.items():
            close(weights[ours].grad, golden[f"grad/{theirs}"], 1e-4)

    def test_codes(self, net):
        assert torch.equal(net.frame_codes(golden["x"]).to(torch.int8), golden["out/frame_codes"].char())
        assert torch.equal(net.hash(golden["x"]).to(torch.int8), golden["out/code"].char())

    def test_adam_trajectory_ends_at_the_published_checkpoint(self, net):
        adam = torch.optim.Adam(net.parameters(), LR, fused=True)
        masks = torch.cat([golden["trajectory/mask1"], golden["trajectory/mask2"]], dim=1)  # (steps, 2B, L)
        for mask, expected in zip(masks, golden["trajectory/loss"], strict=True):
            loss = trained_loss(net, golden["x"], mask)
            close(loss, expected, 1e-3)
            adam.zero_grad()
            loss.backward()
            adam.step()
        published = load_published(GOLDEN / "conmh_tiny.pth")
        assert published.sizes == net.sizes
        assert torch.equal(published.hash(golden["x"]), net.hash(golden["x"]))
        for name, value in published.state_dict().items():
            close(net.state_dict()[name], value, 1e-2)
        states = torch.load(GOLDEN / "conmh_tiny.pth", weights_only=True)["optimizer_state_dict"]["state"]
        assert len(states) == 81
        for number, weight in enumerate(net.parameters()):  # the order that Adam's numbers rely on
            for moment in ("exp_avg", "exp_avg_sq"):
                close(adam.state[weight][moment], states[number][moment], 2e-2)


def literal(net, video, hidden):
    """Spec section 1 of one video (L, D) in float64, a frame and a head at a time.

    Returns:
        The codes of the visible frames (V, b), and the frames at the places ``hidden`` (M, D).
    """
    weights = {name: weight.double() for name, weight in net.named_parameters()}
    sizes = net.sizes

    def linear(name, x):
        y = weights[f"{name}.weight"] @ x
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(name, x, eps=1e-6):
        mean = x.sum() / len(x)
        variance = ((x - mean) ** 2).sum() / len(x)
        return weights[f"{name}.weight"] * (x - mean) / (variance + eps).sqrt() + weights[f"{name}.bias"]

    def position(place, width):
        angles = [place / 10000 ** (2 * (column // 2) / width) for column in range(width)]
        row = [math.cos(angle) if column % 2 else math.sin(angle) for column, angle in enumerate(angles)]
        return torch.tensor(row, dtype=torch.float64)

    def attention(name, tokens, n_heads):
        width = len(tokens[0]) // n_heads
        inner = n_heads * width
        none = torch.zeros(inner, dtype=torch.float64)
        bias = torch.cat([weights[f"{name}.query_bias"], none, weights[f"{name}.value_bias"]])
        qkv = [weights[f"{name}.qkv.weight"] @ x + bias for x in tokens]
        mixed = []
        for own in qkv:
            heads = []
            for head in range(n_heads):
                query, key, value = (slice(start, start + width) for start in
                                     range(head * width, 3 * inner, inner))  # fmt: skip
                logits = torch.stack([own[query] @ other[key] / math.sqrt(width) for other in qkv])
                shares = logits.exp() / logits.exp().sum()
                heads.append(sum(s * other[value] for s, other in zip(shares, qkv, strict=True)))
            mixed.append(linear(f"{name}.output", torch.cat(heads)))
        return mixed

    def blocks(part, tokens, n_blocks, n_heads):
        for name in (f"{part}.blocks.{number}" for number in range(n_blocks)):
            normed = [norm(f"{name}.attention_norm", e) for e in tokens]
            attended = attention(f"{name}.attention", normed, n_heads)
            tokens = [e + a for e, a in zip(tokens, attended, strict=True)]
            inner = [linear(f"{name}.expand", norm(f"{name}.expand_norm", e)) for e in tokens]
            inner = [0.5 * u * (1 + torch.erf(u / math.sqrt(2))) for u in inner]
            tokens = [e + linear(f"{name}.contract", u) for e, u in zip(tokens, inner, strict=True)]
        return tokens

    visible = [place for place in range(len(video)) if place not in hidden]
    width, decoder_width = sizes["hidden_size"], sizes["decoder_size"]
    tokens = [linear("encoder.embed", video[place].double()) + position(place, width) for place in visible]
    tokens = blocks("encoder", tokens, sizes["conmh.n_blocks"], sizes["conmh.n_heads"])
    heads = [linear("encoder.head", norm("encoder.norm", e)) for e in tokens]
    real = [norm("hash_layer.norm", linear("hash_layer.linear", t), 1e-5) for t in heads]
    codes = []
    for v in real:
        passed = torch.where((v > -1) & (v <= 1), v, 0)
        codes.append(torch.where(v > 0, 1.0, -1.0) + (passed - passed.detach()))
    tokens = [linear("decoder_input", c) + position(place, decoder_width)
              for place, c in zip(visible, codes, strict=True)]  # fmt: skip
    tokens += [weights["mask_token"][0, 0] + position(place, decoder_width) for place in hidden]
    tokens = blocks("decoder", tokens, sizes["conmh.decoder_blocks"], sizes["conmh.decoder_heads"])
    last = [linear("decoder.head", norm("decoder.norm", e)) for e in tokens[len(visible) :]]
    return torch.stack(codes), torch.stack(last) if last else None


def literal_loss(net, frames, mask):
    """Spec section 2: the views' reconstruction errors, and the mean codes of unit length (2B, b)."""
    n_videos, total, embedding = len(frames), 0.0, []
    for row, hides in enumerate(mask.tolist()):
        video, hidden = frames[row % n_videos].double(), [place for place, h in enumerate(hides) if h]
        codes, reconstruction = literal(net, video, hidden)
        for place, r in zip(hidden, reconstruction, strict=True):
            total = total + ((r - video[place]) ** 2).sum() / (n_videos * len(hidden) * frames.shape[2])
        mean = codes.mean(0)
        embedding.append(mean / mean.norm().clamp_min(1e-12))
    return total, torch.stack(embedding)


def moved(*sizes):
    """A network whose every weight is away from its start, biases and norms too."""
    torch.manual_seed(0)
    net = ConMH(*sizes)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
    return net


def masks(n_videos, n_frames, n_hidden):
    """Of two views, (2B, L)."""
    return torch.rand(2 * n_videos, n_frames).argsort(1) < n_hidden


# D, H, H', b, blocks and heads of encoder and decoder
SEVERAL = (7, 12, 8, 6, 2, 2, 3, 4)
UNDIVIDED = (7, 10, 8, 5, 1, 4, 2, 3)  # 4 heads of 2 in a width of 10, 3 of 2 in one of 8
MINI = (7, 12, 6, 4, 1, 1, 1, 1)


class TestFormulas:
    @pytest.mark.parametrize(
        ("sizes", "n_frames", "n_hidden", "onednn"),
        [
            (SEVERAL, 7, 3, False),  # the views overlap: 2V > L
            (SEVERAL, 6, 3, True),
            (UNDIVIDED, 6, 3, False),
            (SEVERAL, 5, 1, False),
            (SEVERAL, 5, 4, False),  # one visible frame
            (UNDIVIDED, 5, 4, True),
            (MINI, 4, 2, False),
            (MINI, 2, 1, True),
        ],
    )
    def test_equals_the_spec(self, monkeypatch, sizes, n_frames, n_hidden, onednn):
        monkeypatch.setattr(processor, "LARGE_PRODUCT", 1)
        monkeypatch.setattr(processor, "prefers_onednn", lambda: onednn)
        net = moved(*sizes)
        frames, mask = torch.randn(3, n_frames, 7) + 1, masks(3, n_frames, n_hidden)
        before = frames.clone()
        out, masked = net(frames, mask), net.masked(frames, mask)
        for row, hides in enumerate(mask):
            codes, hidden = literal(net, frames[row % 3], hides.nonzero()[:, 0].tolist())
            assert torch.equal(out.codes[row], codes.float())
            close(out.reconstruction[row], hidden, 1e-5)
        loss, embedding = literal_loss(net, frames, mask)
        close(reconstruction_loss(out.reconstruction, frames, mask), loss, 1e-5)
        close(masked.loss, loss, 1e-5)
        close(masked.embedding, embedding, 1e-6)
        weight = torch.randn(embedding.shape)  # of any loss on the codes
        expected = torch.autograd.grad(loss + (weight * embedding).sum(), list(net.parameters()))
        found = torch.autograd.grad(masked.loss + (weight * masked.embedding).sum(), list(net.parameters()))
        for one, other in zip(found, expected, strict=True):
            close(one, other, 1e-4, floor=1e-7)
        assert torch.equal(frames, before)

    @pytest.mark.parametrize("sizes", [SEVERAL, UNDIVIDED])
    def test_hash_is_the_sign_of_the_mean_code_and_zero_on_a_tie(self, sizes):
        net, frames = moved(*sizes), 3 * torch.randn(8, 2, 7)
        codes = torch.stack([literal(net, video, [])[0] for video in frames])
        assert torch.equal(net.frame_codes(frames), codes.float())
        assert torch.equal(net.hash(frames), codes.sum(1).sign().float())
        assert set(net.hash(frames).unique().tolist()) == {-1, 0, 1}

    def test_one_view_is_half_of_two(self):
        net, frames, mask = moved(*SEVERAL), torch.randn(3, 5, 7), masks(3, 5, 2)
        two = net(frames, mask)
        ones = [net(frames, each) for each in mask.chunk(2)]
        close(torch.cat([one.reconstruction for one in ones]), two.reconstruction, 1e-5)
        assert torch.equal(torch.cat([one.codes for one in ones]), two.codes)
        halves = [net.masked(frames, each).loss for each in mask.chunk(2)]
        direct = [reconstruction_loss(one.reconstruction, frames, each)
                  for one, each in zip(ones, mask.chunk(2), strict=True)]  # fmt: skip
        close(torch.stack(halves), torch.stack(direct), 1e-5)
        close(sum(halves), net.masked(frames, mask).loss, 1e-5)

    def test_reconstruction_loss_by_hand(self):
        frames = torch.tensor([[[1.0, 2], [0, 0]], [[3, 3], [5, 1]]])  # (2, 2, 2)
        mask = torch.tensor([[1, 0], [0, 1], [0, 1], [0, 1]], dtype=torch.bool)
        reconstruction = torch.tensor([[[1.0, 0]], [[5, 2]], [[1, 0]], [[5, 4]]])
        # View 1: (0 + 4 + 0 + 1) / 4; view 2: (1 + 0 + 0 + 9) / 4.
        assert reconstruction_loss(reconstruction, frames, mask) == 3.75
        assert reconstruction_loss(reconstruction[:2], frames, mask[:2]) == 1.25

    def test_reconstructed_frames_far_from_zero_keep_their_digits(self):
        """The loss is a small difference of large sums, here a ten-thousandth of them."""
        torch.manual_seed(0)
        net, frames = ConMH(2048, 16, 12, 16, 1, 1, 1, 1), 10 + 0.1 * torch.randn(32, 9, 2048)
        nn.init.constant_(net.decoder.head.bias, 10)
        nn.init.normal_(net.decoder.head.weight, std=0.001)
        mask = masks(32, 9, 6)
        with torch.no_grad():
            loss = reconstruction_loss(net(frames, mask).reconstruction.double(), frames.double(), mask)
            close(net.masked(frames, mask).loss, loss, 5e-4)

    def test_bfloat16(self, net):
        expected = net.masked(golden["x"], both("mask"))
        net.bfloat16 = True
        found = net.masked(golden["x"], both("mask"))
        out = net(golden["x"], both("mask"))
        assert {part.dtype for part in (*found, *out, net.hash(golden["x"]))} == {torch.float32}
        assert found.loss != expected.loss
        close(found.loss, expected.loss, 0.02)
        close(out.reconstruction, both("out/recon"), 0.1)
        assert (out.codes != both("out/frame_codes")).float().mean() < 0.02
        found.loss.backward()
        assert all(weight.grad.dtype == torch.float32 for weight in net.parameters())


class TestStart:
    def test_initial_values(self):
        torch.manual_seed(0)
        net = ConMH(32, 64, 512, 16, 2, 5, 1, 3)  # 5 heads of 12
        normal = net.mask_token
        assert normal.abs().max() < 0.02  # drawn again, not clipped
        assert normal.std().item() == pytest.approx(0.0108, rel=0.1)  # of a normal cut at one deviation
        for module in net.modules():
            if isinstance(module, nn.LayerNorm):
                assert module.eps == (1e-5 if module is net.hash_layer.norm else 1e-6)
                assert (module.weight == 1).all()
                assert (module.bias == 0).all()
        default = {net.decoder_input, net.hash_layer.linear}
        linears = {module for module in net.modules() if isinstance(module, nn.Linear)}
        assert len(linears) == 2 + (1 + 2 * 4 + 1) + (4 + 1)
        for module in linears:
            n_out, n_in = module.weight.shape
            bound = n_in**-0.5 if module in default else math.sqrt(6 / (n_in + n_out))
            assert 0.95 * bound < module.weight.abs().max() <= bound
            assert module.bias is None or (module.bias == 0).all() == (module not in default)
        for block in (*net.encoder.blocks, *net.decoder.blocks):
            assert (block.attention.query_bias == 0).all()
            assert (block.attention.value_bias == 0).all()

    def test_published_sizes_by_default(self):
        with torch.device("meta"):
            net = ConMH(4096)
        assert net.sizes == {
            "input_size": 4096,
            "hidden_size": 256,
            "decoder_size": 192,
            "hashcode_size": 64,
            "conmh.n_blocks": 12,
            "conmh.n_heads": 6,
            "conmh.decoder_blocks": 2,
            "conmh.decoder_heads": 3,
        }
        assert net.encoder.blocks[0].attention.qkv.weight.shape == (3 * 252, 256)  # 6 heads of 42

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ((8, 5, 4, 4, 2, 1), "2 blocks of width 5 with 1 heads"),
            ((8, 6, 5, 4, 2, 1, 1, 1), "1 blocks of width 5 with 1 heads"),
            ((8, 6, 4, 4, 0, 1), "0 blocks of width 6"),
            ((8, 6, 4, 4, 1, 7), "1 blocks of width 6 with 7 heads"),
            ((8, 6, 4, 4, 1, 1, 1, 0), "1 blocks of width 4 with 0 heads"),
        ],
    )
    def test_impossible_sizes(self, sizes, message):
        with pytest.raises(ValueError, match=message):
            ConMH(*sizes)


class TestPublished:
    def test_sizes_are_read_off_the_weights_and_heads_are_told(self):
        assert load_published(PUBLISHED).sizes == {
            "input_size": 40,
            "hidden_size": 50,
            "decoder_size": 36,
            "hashcode_size": 16,
            "conmh.n_blocks": 3,
            "conmh.n_heads": 6,
            "conmh.decoder_blocks": 2,
            "conmh.decoder_heads": 3,
        }
        assert load_published(PUBLISHED, n_heads=8, decoder_heads=4).sizes["conmh.n_heads"] == 8  # 8 of 6

    @pytest.mark.parametrize(
        ("heads", "message"),
        [
            ((5, 3), "n_heads = 5 makes 150 rows of queries, keys and values, found 144"),
            ((6, 5), "decoder_heads = 5 makes 105 rows of queries, keys and values, found 108"),
            ((51, 3), "3 blocks of width 50 with 51 heads"),
            ((6, 0), "2 blocks of width 36 with 0 heads"),
        ],
    )
    def test_heads_that_cannot_be_right(self, heads, message):
        with pytest.raises(BadInput, match=rf"state dict: not the weights of this network \({message}\)"):
            load_published(PUBLISHED, *heads)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"mask_token": None}, "mask_token is missing"),
            ({"ln.extra": torch.zeros(1)}, "ln.extra is unknown"),
            (
                {"heads": torch.tensor([6.0, 3.0])},
                "state dict: not the weights of this network: heads is unknown",
            ),
            ({"encoder.blocks.1.attn.k_bias": torch.zeros(48)}, "encoder.blocks.1.attn.k_bias is unknown"),
            ({"encoder.blocks.99999999.norm1.weight": torch.zeros(50)}, "99999999.norm1.weight is unknown"),
            ({"encoder.blocks.x.norm1.weight": torch.zeros(50)}, "encoder.blocks.x.norm1.weight is unknown"),
            (
                {"decoder.blocks.2.norm1.weight": torch.zeros(36)},
                "blocks.2.attn.proj.bias is missing",
            ),
            ({"mask_token": torch.zeros(1, 1, 35)}, r"mask_token: expected shape \(1, 1, 36\), found"),
            (
                {"encoder.blocks.2.attn.qkv.weight": torch.zeros(150, 50)},
                r"expected shape \(144, 50\)",
            ),
            ({"encoder.patch_embed.weight": torch.zeros(51, 40)}, "3 blocks of width 51"),
            ({"encoder.patch_embed.weight": torch.zeros(40)}, "not the weights of this network"),
            ({"binary.bias": torch.full((16,), math.inf)}, "binary.bias: expected finite values"),
            ({"binary.bias": [0.0] * 16}, "binary.bias: expected a tensor, found list"),
        ],
    )
    def test_a_wrong_state_is_named(self, change, message):
        state = {key: value for key, value in (PUBLISHED | change).items() if value is not None}
        with pytest.raises(BadInput, match=message) as error:
            load_published(state)
        assert "\n" not in str(error.value)

    def test_no_block_at_all(self):
        state = {key: value for key, value in PUBLISHED.items() if "encoder.blocks" not in key}
        with pytest.raises(BadInput, match="0 blocks of width 50"):
            load_published(state)


class TestOurs:
    @pytest.mark.parametrize("state", [None, 5, [1], torch.zeros(3)])
    def test_no_state_dict(self, state):
        with pytest.raises(BadInput, match="x.pth: expected weights by name, found"):
            from_state(state, "x.pth")

    def test_a_state_dict_tells_its_heads(self, net):
        again = from_state(net.state_dict(), "x.pth")
        assert again.sizes == net.sizes
        assert torch.equal(again.hash(golden["x"]), net.hash(golden["x"]))
        other = moved(*UNDIVIDED)
        assert from_state(other.state_dict(), "x.pth").sizes == other.sizes

    @pytest.mark.parametrize(
        ("heads", "message"),
        [
            (None, "x.pth: not the weights of this network: heads is missing"),
            ([5.0, 3.0], "n_heads = 5 makes"),
            ([1e30, 3.0], "3 blocks of width 50 with"),
            ([6.0], "not the weights of this network"),
            ([[6.0], [3.0]], "not the weights of this network"),
            ([math.nan, 3.0], "heads: expected finite values"),
        ],
    )
    def test_wrong_heads(self, net, heads, message):
        state = net.state_dict()
        del state["heads"]
        if heads is not None:
            state["heads"] = torch.tensor(heads)
        with pytest.raises(BadInput, match=message):
            from_state(state, "x.pth")
