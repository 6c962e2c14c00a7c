"""What the processor can do: simulated ones choose as measured, and products follow the choice."""

import pytest
import torch
from torch.nn import functional as F

from formats import processor
from formats.processor import has_bfloat16, prefers_onednn, product, vendor


@pytest.fixture
def become(monkeypatch):
    """Another processor."""

    def change(maker, *abilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(abilities, True))
        monkeypatch.setattr(processor, "vendor", lambda: maker)
        prefers_onednn.cache_clear()

    yield change
    prefers_onednn.cache_clear()


@pytest.mark.parametrize(
    ("maker", "abilities", "expected"),
    [
        ("AuthenticAMD", ["avx2", "avx512_f", "avx512_bf16"], True),
        ("AuthenticAMD", ["avx2"], False),
        ("GenuineIntel", ["avx2", "avx512_f", "amx_bf16"], False),
        ("arm", ["neon", "bf16"], False),
    ],
)
def test_large_products_go_to_the_library_that_wins(become, monkeypatch, maker, abilities, expected):
    become(maker, *abilities)
    seen = []
    to_mkldnn = torch.Tensor.to_mkldnn
    monkeypatch.setattr(torch.Tensor, "to_mkldnn", lambda x: seen.append(x) or to_mkldnn(x))
    torch.manual_seed(0)
    x, weight, bias = torch.randn(256, 512), torch.randn(512, 512), torch.randn(512)
    result = product(x, weight, bias)
    assert prefers_onednn() == expected
    expected &= torch.backends.mkldnn.is_available()
    assert len(seen) == expected
    assert torch.allclose(result, F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    product(x[:255], weight, bias)  # smaller than large
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    product(x, weight, bias)
    assert len(seen) == expected


@pytest.mark.parametrize(
    ("abilities", "expected"),
    [
        (["avx512_f", "avx512_bf16"], True),
        (["amx_bf16"], True),
        (["neon", "bf16"], True),
        (["avx512_f"], False),
    ],
)
def test_bfloat16_needs_instructions(become, abilities, expected):
    become("any", *abilities)
    assert has_bfloat16() == expected


def test_the_vendor_is_a_word():
    assert len(vendor().split()) <= 1
