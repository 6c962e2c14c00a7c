"""The door for Python: networks from files, codes of arrays and files, codes as bits."""

import numpy as np
import pytest
import torch
from synthetic import GOLDEN, N_FRAMES, ROOT, WIDTH, write_features

import bth.model
import conmh.model
import model
from formats.files import BadInput
from metrics import hamming_distance
from tools.codes import hash_videos, load_network, pack, unpack

OURS = ROOT / "tests/before/weight"


def features(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class TestNetwork:
    @pytest.mark.parametrize(
        ("path", "system", "bits", "n_frames"),
        [
            (OURS / "1_16.pth", model.WSCH, 16, N_FRAMES),
            (OURS / "8_16.part.pth", model.WSCH, 16, N_FRAMES),
            (OURS / "6_16.pth", bth.model.BTH, 16, N_FRAMES),
            (GOLDEN / "wsch_mini.pth", model.WSCH, 32, None),
            (GOLDEN / "bth_tiny.pth", bth.model.BTH, 16, None),
            (GOLDEN / "conmh_tiny.pth", conmh.model.ConMH, 16, None),
        ],
        ids=str,
    )
    def test_of_any_checkpoint(self, path, system, bits, n_frames):
        net = load_network(str(path), device="cpu")
        assert type(net) is system
        assert net.sizes["hashcode_size"] == bits
        assert net.n_frames == n_frames
        assert not net.training
        assert not any(weight.requires_grad for weight in net.parameters())

    @pytest.mark.parametrize(
        ("system", "frames", "code"), [("bth", "masked1", "out/code1"), ("conmh", "x", "out/code")]
    )
    def test_golden_codes(self, tmp_path, system, frames, code):
        golden = np.load(GOLDEN / f"{system}_tiny.npz")
        weights = {key: torch.from_numpy(golden[key]) for key in golden if key.startswith("weight/")}
        torch.save({key.removeprefix("weight/"): value for key, value in weights.items()}, tmp_path / "x.pth")
        net = load_network(tmp_path / "x.pth", device="cpu")
        assert np.array_equal(hash_videos(net, golden[frames]), golden[code])

    @pytest.mark.parametrize("network", [model, bth.model, conmh.model])
    def test_load_published_says_what_reads_ours(self, network):
        with pytest.raises(
            BadInput, match=r"1_16.pth: expected a published .* tools.codes.load_network reads it"
        ):
            network.load_published(OURS / "1_16.pth")

    def test_what_is_none_is_refused(self, tmp_path):
        with pytest.raises(BadInput, match="no such checkpoint"):
            load_network(tmp_path / "x.pth")
        torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "x.pth")
        with pytest.raises(BadInput, match="x.pth: no network of any system: WSCH: .*; BTH: .*; ConMH: "):
            load_network(tmp_path / "x.pth")
        torch.save({"stage": "other.train"}, tmp_path / "x.pth")
        with pytest.raises(BadInput, match="x.pth: 'stage' must be one of"):
            load_network(tmp_path / "x.pth")
        with pytest.raises(BadInput, match="'device' must be auto, cpu, cuda, .* or mps, found gpu"):
            load_network(OURS / "1_16.pth", device="gpu")


class TestCodes:
    @pytest.fixture
    def net(self):
        return load_network(OURS / "1_16.pth", device="cpu")

    def test_whatever_holds_the_features(self, net, tmp_path):
        x = features(11, N_FRAMES, WIDTH)
        expected = net.hash(torch.from_numpy(x)).numpy()
        write_features(tmp_path / "x.h5", x, chunks=(2, N_FRAMES, WIDTH), compression="gzip")
        arrays = (x, torch.from_numpy(x), x.astype(np.float64), x.astype(">f4"), x[::-1].copy()[::-1])
        for held in (*arrays, str(tmp_path / "x.h5"), tmp_path / "x.h5"):
            codes = hash_videos(net, held, batch_size=4)
            assert codes.dtype == np.int8
            assert np.array_equal(codes, expected)
        assert set(np.unique(expected)) == {-1, 0, 1}

    def test_what_does_not_fit_is_refused(self, net, tmp_path):
        x = features(5, N_FRAMES, WIDTH)
        broken = x.copy()
        broken[3, 2, 0] = np.inf
        huge = x.copy()
        huge[3] *= 1e37
        for wrong, message in (
            (x[..., :-1], rf"\(5, 6, 23\), the network expects \(N, 6, {WIDTH}\)"),
            (x[:, :-1], rf"\(5, 5, {WIDTH}\), the network expects \(N, 6, {WIDTH}\)"),
            (x[0], "features have shape"),
            (x[:0], "features have shape"),
            (x.astype(np.int64), "features are int64, expected float16"),
            (x.astype(object), "features are object, expected float16"),
            (broken, "features: video 3, frame 2: not finite"),
            (huge, "features: video 3: its code is not finite"),
            (tmp_path / "none.h5", "none.h5: no such feature file"),
        ):
            with pytest.raises(BadInput, match=message) as error:
                hash_videos(net, wrong, batch_size=2)
            assert "\n" not in str(error.value)
        write_features(tmp_path / "short.h5", x[:, :-1])
        with pytest.raises(
            BadInput, match=rf"short.h5: 'feats' has shape \(5, 5, {WIDTH}\), expected \(N, 6, "
        ):
            hash_videos(net, tmp_path / "short.h5")
        write_features(tmp_path / "wide.h5", features(5, N_FRAMES, WIDTH + 1))
        end = rf"; the network \({net.origin}\) was trained on width {WIDTH}; name one trained on these "
        with pytest.raises(BadInput, match=rf"wide.h5: 'feats' has shape \(5, 6, {WIDTH + 1}\).*{end}"):
            hash_videos(net, tmp_path / "wide.h5")
        with pytest.raises(BadInput, match=end):
            hash_videos(net, x[..., :-1])

    def test_a_published_network_takes_any_number_of_frames(self):
        net = load_network(GOLDEN / "bth_tiny.pth", device="cpu")
        assert hash_videos(net, features(3, 4, net.sizes["input_size"])).shape == (3, 16)


class TestPack:
    def test_by_hand(self):
        codes = np.array([[1, -1, 0, -1, -1, -1, -1, 1, 1, -1], [-1] * 10], np.int8)
        assert np.array_equal(pack(codes), [[0b10100001, 0b10000000], [0, 0]])

    @pytest.mark.parametrize("bits", [1, 8, 16, 20, 100, 128])
    def test_unpack_is_its_inverse(self, bits):
        codes = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (9, bits))
        packed = pack(torch.from_numpy(codes))
        assert packed.dtype == np.uint8
        assert packed.shape == (9, -(-bits // 8))
        assert np.array_equal(unpack(packed, bits), codes)
        distance = np.bitwise_count(packed[:, None] ^ packed).sum(-1)
        assert np.array_equal(distance, hamming_distance(codes, codes))

    def test_other_values_are_refused(self):
        with pytest.raises(ValueError, match="expected -1, 0 and"):
            pack(np.full((2, 8), 2))
        with pytest.raises(
            ValueError, match=r"packed codes of 20 bits: expected uint8 \(N, 3\), found int64"
        ):
            unpack(np.zeros((2, 3), np.int64), 20)
