"""Hash codes as bits: checked, packed into bytes as search engines take them, into words to count with.

Axes: N videos, b bits.
"""

import numpy as np
import torch
from torch import Tensor

COLUMNS = 8192  # codes to check at once


def pack(codes: np.ndarray | Tensor) -> np.ndarray:
    """Codes as bits, the form in which search engines take them; 0 counts as +1.

    Args:
        codes: in {-1, 0, +1}, (N, b).

    Returns:
        uint8, (N, ceil(b / 8)): the first bit is a byte's highest, missing bits at the end are 0.

    Raises:
        ValueError: other values (bits 0 and 1 are no codes) or another shape.
    """
    (codes,) = check_codes(codes)
    return np.packbits(codes.cpu().numpy() >= 0, axis=1)


def unpack(packed: np.ndarray, n_bits: int) -> np.ndarray:
    """The inverse of `pack`: uint8 (N, ceil(b / 8)) to codes int8 (N, b) in {-1, +1}.

    Raises:
        ValueError: not bytes of ``n_bits`` bits.
    """
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != -(-n_bits // 8):
        expected, found = f"uint8 (N, {-(-n_bits // 8)})", f"{packed.dtype} {packed.shape}"
        raise ValueError(f"packed codes of {n_bits} bits: expected {expected}, found {found}")
    return 2 * np.unpackbits(packed, axis=1, count=n_bits).astype(np.int8) - 1


def count_distinct(codes: np.ndarray | Tensor) -> int:
    """How many different codes there are among (N, b); codes and errors as in `pack`."""
    keys = np.concatenate(words(*check_codes(codes))[0])  # (words * planes, N)
    keys = keys[:, np.lexsort(keys)]
    return 1 + int((keys[:, 1:] != keys[:, :-1]).any(0).sum())


def words(*codes: Tensor) -> list[np.ndarray]:
    """Codes (N, b) as uint64 words (words, planes, N): signs and, where any code has a 0, what is not 0."""
    zeros = any((each == 0).any() for each in codes)
    fill = (-codes[0].shape[1] // 8) % 8  # bytes that a last word lacks
    out = []
    for each in codes:
        planes = torch.stack((each > 0, each != 0)[: 1 + zeros]).cpu().numpy()  # (planes, N, b)
        packed = np.pad(np.packbits(planes, axis=2), ((0, 0), (0, 0), (0, fill)))
        out.append(np.ascontiguousarray(packed.view(np.uint64).transpose(2, 0, 1)))
    return out


def check_codes(*codes: Tensor) -> list[Tensor]:
    """Check codes, of the query first; return them on its device."""
    codes = [as_tensor(each) for each in codes]
    for name, each in zip(("query", "database") if len(codes) == 2 else ("video",), codes, strict=True):
        if each.ndim != 2 or each.numel() == 0:
            raise ValueError(f"{name} codes: expected a non-empty (videos, bits), found {tuple(each.shape)}")
        if not all(torch.equal(part, part.sign()) for part in each.split(COLUMNS)):
            raise ValueError(f"{name} codes: expected -1, 0 and +1 only")
    # A 0 is a tie, and rare: without any -1 beside it, it is a bit.
    if min(each.min() for each in codes) == 0 or any(each.dtype == torch.bool for each in codes):
        raise ValueError("codes look like bits 0 and 1: pass 2 * bits - 1, bits of a signed type")
    bits = [each.shape[1] for each in codes]
    if min(bits) != max(bits):
        raise ValueError(f"code lengths differ: query codes have {bits[0]} bits, database codes {bits[1]}")
    return [each.to(codes[0].device) for each in codes]


def as_tensor(x: Tensor | np.ndarray) -> Tensor:
    """What `loadmat` hands out, any memory or byte order and sparse, as a contiguous tensor."""
    if isinstance(x, Tensor):
        return x.contiguous()
    x = np.asarray(x.toarray() if hasattr(x, "toarray") else x)
    return torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))  # native, writable numbers
