"""On paper: what FCVID, YFCC and a hundred million videos ask of a machine, and of several ranks.

    python -m bench.paper

Nothing is timed. Sizes are those of the published networks, counted here: weights from the networks,
operations by PyTorch's own counter. What a machine does a second is assumed, and printed above the tables.
"""

import argparse
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.passes import BATCH, N_FRAMES, PUBLISHED, both
from formats import processor

SETS = {"FCVID": 45_585, "YFCC": 409_788, "100 million": 100_000_000}  # training videos
WIDTH, BITS, CENTERS = PUBLISHED[0], PUBLISHED[3], PUBLISHED[4]
PASSES = ("pretrain", "cluster-guided", "contrastive", "bth-mask", "bth-pairs", "conmh-views")
COUNTED = 8  # videos of the counted step
OPERATIONS = 100e12  # a second of a GPU, in training: a tenth of what an H100 does at most in bfloat16
NETWORK, DISK = 25e9, 5e9  # bytes a second between ranks, and from the disks of a machine
GPUS = 8  # of a machine


def count(name: str) -> tuple[float, int]:
    """Operations of a step for each video (or pair), and bytes of the gradients."""
    ours, _ = both(name, COUNTED)
    with patch.object(processor, "prefers_onednn", lambda: False), FlopCounterMode(display=False) as counter:
        ours.loss().backward()
    used = [each for each in ours.net.parameters() if each.grad is not None]
    return counter.get_total_flops() / COUNTED, sum(each.nbytes for each in used)


def main() -> None:
    """Print the tables."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.manual_seed(0)
    video = N_FRAMES * WIDTH * 4  # bytes, float32
    print(
        f"{N_FRAMES} frames of width {WIDTH} ({video / 1e3:.0f} kB), {BITS} bits, {CENTERS} centers, batches "
        f"of {BATCH} a GPU.\nAssumed: a GPU does {OPERATIONS / 1e12:.0f} TFLOP/s, ranks exchange "
        f"{NETWORK / 1e9:.0f} GB/s, a machine of {GPUS} GPUs reads {DISK / 1e9:.0f} GB/s.\n"
    )
    columns = ("a step of", "GFLOP a video", "ms of a GPU", "MB of gradients", "ms to sum them, 8 ranks",
               "ms to read it, 8 GPUs")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for name in PASSES:
        operations, gradients = count(name)
        compute, exchange = BATCH * operations / OPERATIONS, 2 * (GPUS - 1) / GPUS * gradients / NETWORK
        reading = (1 + (name == "bth-pairs")) * GPUS * BATCH * video / DISK  # a pair reads its two videos
        cells = [f"{operations / 1e9:.2f}", f"{1e3 * compute:.1f}", f"{gradients / 1e6:.1f}"]
        cells += [f"{1e3 * exchange:.1f}", f"{1e3 * reading:.0f}"]
        print(f"| {name} | {' | '.join(cells)} |")

    print("\n| of a set | " + " | ".join(SETS) + " |\n| --- |" + " --- |" * len(SETS))
    rows = {
        "GB read in a pass": lambda n: n * video / 1e9,
        "... seconds from the disks of one machine": lambda n: n * video / DISK,
        "GB of codes of both views that every rank receives, once a cycle": lambda n: 2 * n * BITS / 1e9,
        "GB of them as float32 on every rank, while the first centers are drawn": lambda n: (
            8 * n * BITS / 1e9
        ),
        "GB of order and masks of a pass on every rank": lambda n: n * (8 + 2 * N_FRAMES) / 1e9,
        "GB of codes of the whole set, packed": lambda n: n * BITS / 8 / 1e9,
    }
    for name, of in rows.items():
        cells = [f"{value:,.0f}" if (value := of(n)) >= 100 else f"{value:.2g}" for n in SETS.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    summed = CENTERS * BITS * 8 + (CENTERS + 1) * 8  # sums and counts
    print(f"\nk-means: {summed / 1e6:.2f} MB summed a round, whatever the set.")


if __name__ == "__main__":
    main()
