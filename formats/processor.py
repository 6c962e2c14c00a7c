"""What the processor can do, and matrix products made the fastest way on it.

The ways differ in rounding, so the choice depends on the processor alone: a machine always computes the same.
"""

import functools
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE_PRODUCT = 2**26  # multiplications from which a product is worth handing to oneDNN
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # instructions; the last two are ARM's


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; where it is emulated a step takes fifty times as long."""
    return any(map(torch.cpu.get_capabilities().get, BFLOAT16))


@functools.cache
def prefers_onednn() -> bool:
    """Whether large float32 products are faster by oneDNN than by MKL, which is PyTorch's choice.

    With AVX-512 on a processor not made by Intel (Zen 5) they take half the time, with AVX2 (Zen 3) more.
    """
    return bool(torch.cpu.get_capabilities().get("avx512_f")) and vendor() != "GenuineIntel"


def vendor() -> str:
    """Who made the processor, as it says itself: ``GenuineIntel``, ``AuthenticAMD``, ..."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")]
    return named[0] if named else platform.processor().rpartition(" ")[2]  # elsewhere its last word


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``; a large one in float32 by oneDNN if that wins: (..., I), (O, I) -> (..., O).

    PyTorch hands float32 products to MKL. An operand in oneDNN's layout is the public way to ask for oneDNN;
    it costs a copy each way, hence "large". ``torch.backends.mkldnn.flags(enabled=False)`` turns it off.
    """
    on_cpu = x.device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    float32 = x.dtype == weight.dtype == torch.float32
    large = x.numel() * len(weight) >= LARGE_PRODUCT
    if on_cpu and float32 and large and prefers_onednn() and not torch.is_autocast_enabled("cpu"):
        return F.linear(x.to_mkldnn(), weight, bias).to_dense()
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """A linear layer whose product is ``product``."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., I) to (..., O)."""
        return product(x, self.weight, self.bias)
