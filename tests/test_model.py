"""The network, its losses, published checkpoints: golden numbers, slow literal versions of the spec."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from synthetic import GOLDEN, close

from bench.direct import Direct
from bench.step import ours_and_direct
from formats import processor
from formats.files import BadInput
from model import (
    PUBLISHED_NAMES,
    SSD,
    WSCH,
    Attention,
    CausalConv,
    Decoder,
    cluster_loss,
    contrastive_loss,
    load_published,
    product,
    reconstruction_loss,
)


@pytest.fixture(params=["wsch_tiny", "wsch_mini"])
def golden(request):
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{request.param}.npz").items()}


def golden_net(golden):
    """The network at its start, with the sign centers that the golden losses used."""
    prefix = "weight/"
    net = load_published(
        {key[len(prefix) :]: value for key, value in golden.items() if key.startswith(prefix)}
    )
    net.centers.copy_(golden["cluster_centers"])
    return net


def losses(net, golden, mask1, mask2):
    """The three losses of both views, as one batch."""
    a, b, cluster_temperature, temperature, tau_plus, _ = golden["loss_a_b_clusT_T_tau_lr"].tolist()
    mask = torch.cat([mask1, mask2])
    out = net(golden["x"], mask)
    one, two = out.embedding.chunk(2)
    reconstruction = reconstruction_loss(out.reconstruction, golden["x"], mask)
    cluster = sum(cluster_loss(h, net.centers, cluster_temperature) for h in (one, two))
    contrastive = contrastive_loss(one, two, temperature, tau_plus)
    return out, (reconstruction, cluster, contrastive), (a, b)


class TestGolden:
    def test_outputs_and_losses(self, golden):
        net = golden_net(golden)
        out, terms, _ = losses(net, golden, golden["mask1"], golden["mask2"])
        for view, reconstruction in enumerate(out.reconstruction.chunk(2), 1):
            expected = golden[f"out/recon{view}"]
            close(reconstruction[:, None].expand_as(expected), expected, 1e-5)
        for view, embedding in enumerate(out.embedding.chunk(2), 1):
            close(embedding, golden[f"out/embedding{view}"], 1e-5)
        for name, term in zip(("reconstruction", "cluster", "contrastive"), terms, strict=True):
            close(term, golden[f"out/{name}_loss"], 1e-5)

    def test_gradients(self, golden):
        net = golden_net(golden)
        _, (reconstruction, cluster, contrastive), (a, b) = losses(
            net, golden, golden["mask1"], golden["mask2"]
        )
        (reconstruction + a * cluster + b * contrastive).backward()
        seen = 0
        ours = dict(net.named_parameters())
        for key, expected in golden.items():
            if key.startswith("grad/"):
                module, _, leaf = key[len("grad/") :].rpartition(".")
                close(ours[f"{PUBLISHED_NAMES[module]}.{leaf}"].grad, expected, 1e-4, floor=1e-7)
                seen += 1
        assert seen == len(ours)

    def test_inference_codes(self, golden):
        net = golden_net(golden)
        tokens = net.encoder(golden["x"])
        codes = net.hash_layer(tokens)
        close(tokens, golden["out/encoder_tokens"], 1e-5)
        assert torch.equal(codes.to(torch.int8), golden["out/frame_codes"])
        assert torch.equal(net.hash(golden["x"]).to(torch.int8), golden["out/code"])
        nothing_hidden = torch.zeros(golden["x"].shape[:2], dtype=torch.bool)
        close(net.embed(golden["x"], nothing_hidden), golden["out/inference"], 1e-5)

    def test_ssd(self, golden):
        close(golden_net(golden).encoder.ssd(golden["ssm/x"]), golden["ssm/y"], 1e-5)

    def test_adam_trajectory(self, golden):
        net = golden_net(golden)
        adam = torch.optim.Adam(net.parameters(), lr=golden["loss_a_b_clusT_T_tau_lr"][5].item(), fused=True)
        expected = golden["trajectory/loss"]
        for step in range(len(expected)):
            masks = golden["trajectory/mask1"][step], golden["trajectory/mask2"][step]
            _, (reconstruction, cluster, contrastive), (a, b) = losses(net, golden, *masks)
            loss = (reconstruction, reconstruction + a * cluster, reconstruction + b * contrastive)[step % 3]
            close(loss, expected[step], 1e-3)
            adam.zero_grad()
            loss.backward()
            adam.step()
        assert step > 10

    def test_published_checkpoint_is_the_trained_network(self):
        golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "wsch_mini.npz").items()}
        net = golden_net(golden)
        adam = torch.optim.Adam(net.parameters(), lr=golden["loss_a_b_clusT_T_tau_lr"][5].item())
        for step in range(len(golden["trajectory/loss"])):
            masks = golden["trajectory/mask1"][step], golden["trajectory/mask2"][step]
            _, (reconstruction, cluster, contrastive), (a, b) = losses(net, golden, *masks)
            adam.zero_grad()
            (reconstruction, reconstruction + a * cluster, reconstruction + b * contrastive)[
                step % 3
            ].backward()
            adam.step()
        published = load_published(GOLDEN / "wsch_mini.pth")
        for key, value in published.state_dict().items():
            close(net.state_dict()[key], value, 1e-3)
        assert torch.equal(net.hash(golden["x"]), published.hash(golden["x"]))
        states = torch.load(GOLDEN / "wsch_mini.pth", weights_only=True)["optimizer"]["state"]
        for number, parameter in enumerate(net.parameters()):  # the order that Adam's numbers rely on
            assert states[number]["exp_avg"].shape == parameter.shape
            close(adam.state[parameter]["exp_avg_sq"], states[number]["exp_avg_sq"], 1e-2, floor=1e-10)


def literal_decoder(decoder: Decoder, codes, n_hidden):
    """Section 5 as written: L tokens, M of them the mask token, every one a query; the last M outputs."""
    tokens = torch.cat([codes, decoder.mask_token.expand(len(codes), n_hidden, -1)], dim=1)
    y = decoder.input_proj(tokens)
    y = y + decoder.attention(decoder.norm(y).to(y.dtype))
    return decoder.output_proj(y)[:, -n_hidden:]


def literal_ssd(ssd: SSD, x):
    """Section 3's recurrence, one frame and one head at a time."""
    n_heads = len(ssd.D)
    delta, b, c = ssd.x_proj(x).split([n_heads, 64, 64], dim=-1)
    delta = F.softplus(delta + ssd.dt_bias)
    out = []
    for head in range(n_heads):
        xs = x[..., 128 * head : 128 * (head + 1)]
        state = x.new_zeros(len(x), 64, 128)
        rows = []
        for t in range(x.shape[1]):
            step = delta[:, t, head, None, None]
            decay = (-ssd.A_log[head].exp() * step).exp()
            state = decay * state + step * b[:, t, :, None] * xs[:, t, None, :]
            rows.append((c[:, t, None, :] @ state)[:, 0] + ssd.D[head] * xs[:, t])
        out.append(torch.stack(rows, dim=1))
    return torch.cat(out, dim=-1)


def calls_of(function, name):
    """How often an operator runs inside a function."""
    with torch.profiler.profile() as profile:
        function()
    return sum(event.count for event in profile.key_averages() if event.key == name)


def gradients(output, inputs):
    """Gradients of a fixed random projection of ``output``."""
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(5)).to(output.dtype)
    return torch.autograd.grad((output * weight).sum(), inputs)


class TestShortcuts:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("n_frames", "n_visible"), [(25, 3), (25, 10), (7, 3), (2, 1), (30, 29)])
    @pytest.mark.parametrize("width", [32, 96])
    def test_decoder_equals_all_tokens(self, n_frames, n_visible, width, dtype):
        torch.manual_seed(0)
        decoder = Decoder(24, width, 16).to(dtype)
        torch.nn.init.normal_(decoder.mask_token)
        codes = torch.randn(3, n_visible, 16, dtype=dtype).sign().requires_grad_()
        n_hidden = n_frames - n_visible
        shortcut, literal = decoder(codes, n_hidden), literal_decoder(decoder, codes, n_hidden)
        close(shortcut[:, None].expand_as(literal), literal, 1e-5)
        inputs = [codes, *decoder.parameters()]
        grads = zip(gradients(shortcut, inputs), gradients(literal.mean(1), inputs), strict=True)
        for ours, expected in grads:
            close(ours, expected, 1e-4, floor=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("n_frames", [1, 2, 3, 10, 30])
    @pytest.mark.parametrize("n_heads", [1, 2, 4])
    def test_ssd_equals_recurrence(self, n_frames, n_heads, dtype):
        torch.manual_seed(n_frames)
        ssd = SSD(128 * n_heads).to(dtype)
        torch.nn.init.normal_(ssd.dt_bias)
        torch.nn.init.normal_(ssd.D)
        x = torch.randn(2, n_frames, 128 * n_heads, dtype=dtype, requires_grad=True)
        close(ssd(x), literal_ssd(ssd, x), 1e-5)
        inputs = [x, *ssd.parameters()]
        for ours, expected in zip(
            gradients(ssd(x), inputs), gradients(literal_ssd(ssd, x), inputs), strict=True
        ):
            close(ours, expected, 1e-4)

    def test_ssd_survives_a_strong_decay(self):
        ssd = SSD(128)
        torch.nn.init.constant_(
            ssd.dt_bias, 60.0
        )  # exp(-60 * 16 * 30) underflows, its inverse would overflow
        x = torch.randn(2, 30, 128, requires_grad=True)
        y = ssd(x)
        close(y, literal_ssd(ssd, x), 1e-5)
        assert all(grad.isfinite().all() for grad in gradients(y, [x, *ssd.parameters()]))

    @pytest.mark.parametrize("n_frames", [1, 2, 3, 4, 10])
    def test_convolution_equals_the_library(self, n_frames):
        torch.manual_seed(n_frames)
        conv = CausalConv(12)
        x = torch.randn(3, n_frames, 12, requires_grad=True)
        literal = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), conv.weight, groups=6).transpose(1, 2)
        close(conv(x), literal, 1e-5)
        for ours, expected in zip(
            gradients(conv(x), [x, conv.weight]), gradients(literal, [x, conv.weight]), strict=True
        ):
            close(ours, expected, 1e-5)

    def test_folded_input_norm_equals_the_plain_one(self):
        torch.manual_seed(0)
        encoder = WSCH(40, 64, 64, 16, 4).encoder
        torch.nn.init.normal_(encoder.input_norm.weight)
        torch.nn.init.normal_(encoder.input_norm.bias)
        frames = torch.randn(3, 5, 40)
        inputs = [encoder.input_norm.weight, encoder.input_norm.bias, encoder.input_proj.weight]
        plain = encoder.input_proj(encoder.input_norm(frames))
        close(encoder.project(frames), plain, 1e-5)
        for ours, expected in zip(
            gradients(encoder.project(frames), inputs), gradients(plain, inputs), strict=True
        ):
            close(ours, expected, 1e-5)

    @pytest.mark.parametrize("with_bias", [True, False])
    def test_products_by_onednn_equal_the_plain_ones(self, with_bias, monkeypatch):
        torch.manual_seed(0)
        x = torch.randn(3, 5, 40, requires_grad=True)
        weight, bias = torch.randn(24, 40, requires_grad=True), torch.randn(24, requires_grad=True)
        inputs = [x, weight, bias] if with_bias else [x, weight]
        plain = product(*inputs)
        close(plain, F.linear(*inputs), 1e-6)
        assert not calls_of(lambda: product(*inputs), "aten::mkldnn_linear")
        monkeypatch.setattr(processor, "LARGE_PRODUCT", 1)
        monkeypatch.setattr(processor, "prefers_onednn", lambda: True)
        large = product(*inputs)
        if torch.backends.mkldnn.is_available():
            assert calls_of(lambda: product(*inputs), "aten::mkldnn_linear") == 1
        close(large, plain, 1e-5)
        for ours, expected in zip(gradients(large, inputs), gradients(plain, inputs), strict=True):
            assert ours.layout == torch.strided
            close(ours, expected, 1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert product(*inputs).dtype == torch.bfloat16

    def test_one_product_for_query_key_and_value_equals_three(self):
        torch.manual_seed(0)
        attention = Attention(24)
        x = torch.randn(3, 5, 24, requires_grad=True)
        query, key, value = (
            linear(x).view(3, 5, 4, 6).transpose(1, 2)
            for linear in (attention.query, attention.key, attention.value)
        )
        y = (query @ key.mT / math.sqrt(6)).softmax(-1) @ value
        literal = attention.output(y.transpose(1, 2).reshape(3, 5, 24))
        close(attention(x), literal, 1e-5)
        inputs = [x, *attention.parameters()]
        for ours, expected in zip(gradients(attention(x), inputs), gradients(literal, inputs), strict=True):
            close(ours, expected, 1e-4)

    def test_attention_of_a_token_alone_has_no_noise(self):
        torch.manual_seed(0)
        net = WSCH(40, 64, 64, 16, 4)
        net.encoder(torch.randn(3, 1, 40)).square().sum().backward()
        assert (net.encoder.attention.query.weight.grad == 0).all()
        assert (net.encoder.attention.key.weight.grad == 0).all()
        assert (net.encoder.attention.value.weight.grad != 0).any()

    def test_two_views_in_one_batch_equal_two_calls(self):
        torch.manual_seed(0)
        net = WSCH(40, 64, 64, 16, 4)
        frames = torch.randn(3, 7, 40)
        masks = [torch.rand(3, 7).argsort(1) < 4 for _ in range(2)]
        both = net(frames, torch.cat(masks))
        for view, mask in enumerate(masks):
            close(both.reconstruction.chunk(2)[view], net(frames, mask).reconstruction, 1e-6)
            close(both.embedding.chunk(2)[view], net(frames, mask).embedding, 1e-6)


class TestDirect:
    """The whole against the direct formulation that the benches compare with."""

    sizes = (40, 128, 32, 16, 6)

    @pytest.mark.parametrize("onednn", [False, True])
    @pytest.mark.parametrize("name", ["pretrain", "cluster-guided", "contrastive"])
    def test_losses_and_gradients(self, name, onednn, monkeypatch):
        if onednn:
            monkeypatch.setattr(processor, "LARGE_PRODUCT", 1)
            monkeypatch.setattr(processor, "prefers_onednn", lambda: True)
        torch.manual_seed(0)
        ours, direct = ours_and_direct(name, self.sizes, n_videos=6, n_frames=10)
        loss, expected = ours.loss(), direct.loss()
        close(loss, expected, 1e-5)
        loss.backward()
        expected.backward()
        for (key, parameter), other in zip(ours.net.named_parameters(), direct.net.parameters(), strict=True):
            close(parameter.grad, other.grad, 1e-3, floor=1e-6), key

    def test_codes(self):
        torch.manual_seed(0)
        net, direct = WSCH(*self.sizes), Direct(*self.sizes)
        direct.load_state_dict(net.state_dict())
        frames = torch.randn(6, 10, 40)
        assert torch.equal(net.hash(frames), direct.hash(frames))


class TestLosses:
    def test_reconstruction_against_a_loop(self):
        torch.manual_seed(0)
        n_videos, n_frames = 4, 6
        frames = torch.randn(n_videos, n_frames, 5)
        frames[0, 2] = 0  # an all-zero frame contributes cos 0
        mask = torch.stack([torch.randperm(n_frames) < 4 for _ in range(2 * n_videos)])
        r = torch.randn(2 * n_videos, 5)
        expected = 0.0
        for view in range(2):
            cos = []
            for video in range(n_videos):
                row = view * n_videos + video
                for frame in range(n_frames):
                    if mask[row, frame]:
                        x = frames[video, frame]
                        cos.append(float(r[row] @ x / (max(r[row].norm(), 1e-8) * max(x.norm(), 1e-8))))
            expected += 1 - sum(cos) / len(cos)
        close(reconstruction_loss(r, frames, mask), expected, 1e-6)
        one = reconstruction_loss(r[:n_videos], frames, mask[:n_videos])
        close(one + reconstruction_loss(r[n_videos:], frames, mask[n_videos:]), expected, 1e-6)

    def test_cluster_against_a_loop(self):
        torch.manual_seed(0)
        h = F.normalize(torch.randn(5, 8), dim=-1).requires_grad_()
        centers = torch.randn(3, 8).sign()
        centers[0, 3] = 0
        centers[2] = 0  # all zero: cos 0
        expected = 0.0
        for i in range(5):
            s = [float(h[i].detach() @ c / max(c.norm(), 1e-8)) / 0.2 for c in centers]
            expected += (math.log(sum(math.exp(value) for value in s)) - max(s)) / 5
        close(cluster_loss(h, centers, 0.2), expected, 1e-6)

    def test_cluster_ties_go_to_the_lowest_center(self):
        centers = torch.tensor([[-1.0, -1, -1, -1], [1, 1, -1, 1], [1, 1, 1, -1]])
        h = F.normalize(
            torch.tensor([[1.0, 1, 1 / 3, 1 / 3]]), dim=-1
        ).requires_grad_()  # equally near 1 and 2
        (grad,) = torch.autograd.grad(cluster_loss(h, centers, 0.2), h)
        assert grad[0, 3] < grad[0, 2]  # descent goes towards center 1, whatever the order of summation
        (swapped,) = torch.autograd.grad(cluster_loss(h, centers[[0, 2, 1]], 0.2), h)
        assert swapped[0, 3] > swapped[0, 2]

    def test_cluster_has_no_gradient_to_the_centers(self):
        centers = torch.randn(3, 8, requires_grad=True)
        h = torch.randn(5, 8, requires_grad=True)
        cluster_loss(h, centers, 0.2).backward()
        assert centers.grad is None
        assert h.grad.abs().sum() > 0


class TestPublished:
    state = torch.load(GOLDEN / "wsch_mini.pth", weights_only=True)["berthash"]

    def test_sizes_are_read_off_the_weights(self):
        net = load_published(GOLDEN / "wsch_mini.pth")
        assert net.encoder.input_proj.weight.shape == (64, 40)
        assert net.decoder.input_proj.weight.shape == (64, 32)
        assert net.centers.shape == (4, 32)
        assert torch.equal(net.centers, self.state["cluster_centers"])

    def test_both_spellings_of_the_state_space(self):
        other = {key.replace("En.ssm", "En.ssd"): value for key, value in self.state.items()}
        ours, renamed = load_published(self.state).state_dict(), load_published(other).state_dict()
        assert all(torch.equal(ours[key], renamed[key]) for key in ours)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"En.in_proj.weight": None}, "En.in_proj.weight is missing"),
            ({"De.extra.weight": torch.zeros(1)}, "De.extra.weight is unknown"),
            ({"hash.ln.weight": torch.zeros(31)}, r"hash.ln.weight: expected shape \(32,\), found \(31,\)"),
            ({"En.in_proj.weight": torch.zeros(63, 40)}, "hidden_size 63 is not a multiple of 64"),
            ({"En.in_proj.weight": torch.zeros(64)}, "not the weights of this network"),
            ({"hash.ln.bias": torch.full((32,), math.inf)}, "hash.ln.bias: expected finite values"),
            ({"hash.ln.bias": [0.0] * 32}, "hash.ln.bias: expected a tensor, found list"),
        ],
    )
    def test_a_wrong_state_is_named(self, change, message):
        state = {key: value for key, value in (self.state | change).items() if value is not None}
        with pytest.raises(BadInput, match=message):
            load_published(state)

    def test_widths_that_the_heads_cannot_share(self):
        with pytest.raises(ValueError, match="hidden_size 96 is not a multiple of 64"):
            WSCH(40, hidden_size=96)
        with pytest.raises(ValueError, match="decoder_size 66 is not a multiple of 4"):
            WSCH(40, hidden_size=64, decoder_size=66)

    def test_initial_values(self):
        torch.manual_seed(0)
        net = WSCH(40, 1024, 64, 16, 4)
        ssd = net.encoder.ssd
        assert ssd.A_log.shape == (16,)
        assert (ssd.dt_bias == 0).all()
        assert (ssd.D == 1).all()
        assert ((ssd.A_log.exp() >= 1) & (ssd.A_log.exp() <= 16)).all()
        assert (net.decoder.mask_token == 0).all()
        bound = (2 * KERNEL) ** -0.5  # Conv1d's default: uniform within 1 / sqrt(fan in)
        assert 0.99 * bound < net.encoder.conv.weight.abs().max() <= bound


KERNEL = 4
