"""Whole training steps at the published sizes against the direct formulation: time, memory, where time goes.

    OMP_WAIT_POLICY=passive python -m bench.step
    python -m bench.step --rounds 9 --batch 64

The direct formulation stands in ``bench/direct.py``; both start from the same weights, see the same batch and
masks, and their losses must agree to 1e-5 before anything is timed. A step is forward, losses, backward and
Adam: fused here, PyTorch's default there. On a CUDA device an epoch of FCVID's size is timed too.
"""

import argparse
import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import model
from bench import direct
from bench.machine import describe, interleaved, measured
from data import draw_views, generator, n_hidden_frames
from formats import processor
from pretrain import Cfg

PUBLISHED = (4096, 1024, 1024, 64, 800)  # D, H, H', bits, n_clusters
FCVID_VIDEOS, N_FRAMES, BATCH = 45_585, 25, 128
PASSES = {"pretrain": "p1", "cluster-guided": "p2", "contrastive": "p2"}
CFG = Cfg()
# What the profiler calls a matrix product.
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mkldnn_linear", "mkldnn_linear_backward_weights",
            "mkldnn_linear_backward_input", "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention_for_cpu_backward")  # fmt: skip


@dataclass
class Ours:
    """A pass of the package on one batch."""

    net: nn.Module
    name: str
    frames: Tensor
    mask: Tensor
    optimizer: torch.optim.Optimizer | None = None

    def loss(self) -> Tensor:
        """The loss of the pass, as the stages have it."""
        out = self.net(self.frames, self.mask)
        loss = model.reconstruction_loss(out.reconstruction, self.frames, self.mask)
        views = out.embedding.chunk(2)
        if self.name == "cluster-guided":
            pull = sum(model.cluster_loss(view, self.net.centers, CFG.clus_temperature) for view in views)
            loss = loss + CFG.a * pull
        if self.name == "contrastive":
            loss = loss + CFG.b * model.contrastive_loss(*views, CFG.temperature, CFG.tau_plus)
        return loss

    def step(self) -> None:
        """One step of Adam."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


class Direct(Ours):
    """The same pass in the direct formulation."""

    def loss(self) -> Tensor:
        """The loss of the pass as the equations are written, a forward for each view."""
        masks = self.mask.chunk(2)
        outs = [self.net(self.frames, mask) for mask in masks]
        loss = sum(
            direct.reconstruction_loss(reconstruction, self.frames, mask)
            for (reconstruction, _), mask in zip(outs, masks, strict=True)
        )
        views = [embedding for _, embedding in outs]
        if self.name == "cluster-guided":
            pull = sum(direct.cluster_loss(view, self.net.centers, CFG.clus_temperature) for view in views)
            loss = loss + CFG.a * pull
        if self.name == "contrastive":
            loss = loss + CFG.b * direct.contrastive_loss(*views, CFG.temperature, CFG.tau_plus)
        return loss


def ours_and_direct(
    name: str, sizes: tuple[int, ...] = PUBLISHED, n_videos: int = BATCH, n_frames: int = N_FRAMES
) -> tuple[Ours, Direct]:
    """A pass in both formulations, with equal weights, on the same random batch."""
    torch.manual_seed(0)
    net, other = model.WSCH(*sizes), direct.Direct(*sizes)
    net.centers.copy_(torch.randn_like(net.centers).sign())
    other.load_state_dict(net.state_dict())
    frames = torch.randn(n_videos, n_frames, sizes[0])
    ratio = getattr(CFG, PASSES[name])
    mask = draw_views(generator(0, name), n_videos, n_frames, ratio).masks.flatten(0, 1)
    adam = torch.optim.Adam(net.parameters(), 1e-4, fused=True)
    plain = torch.optim.Adam(other.parameters(), 1e-4)
    return Ours(net, name, frames, mask, adam), Direct(other, name, frames, mask, plain)


def check(ours: Ours, other: Direct) -> None:
    """Compare the losses; a bench of something else would be worth nothing."""
    with torch.no_grad():
        one, two = float(ours.loss()), float(other.loss())
    if abs(one - two) > 1e-5 * abs(two):
        raise SystemExit(f"{ours.name}: the losses differ, {one} and {two} in the direct formulation")


def three_steps(formulation: int, name: str, batch: int) -> None:
    """Three steps of one formulation, for a process of its own."""
    pair = ours_and_direct(name, n_videos=batch)[formulation]
    for _ in range(3):
        pair.step()


def compare(name: str, batch: int, rounds: int) -> None:
    """One row for a pass: seconds of a step in each way, interleaved."""
    ours, other = ours_and_direct(name, n_videos=batch)
    check(ours, other)

    def with_precision(bfloat16: bool, large: float = processor.LARGE_PRODUCT) -> None:
        ours.net.bfloat16, processor.LARGE_PRODUCT = bfloat16, large
        ours.step()

    seconds = interleaved(
        {
            "direct": other.step,
            "float32": lambda: with_precision(False),
            "without oneDNN": lambda: with_precision(False, large=math.inf),
            "bfloat16": lambda: with_precision(True),
        },
        rounds,
    )
    with_precision(False)
    peak_ours, peak_direct = (measured(three_steps, number, name, batch)[1] for number in (0, 1))
    base = seconds["float32"]
    print(f"| {name} | {seconds['direct']:.2f} | {base:.3f} | {seconds['direct'] / base:.1f} | "
          f"{seconds['direct'] / seconds['without oneDNN']:.1f} | {base / seconds['bfloat16']:.2f} | "
          f"{seconds['without oneDNN'] / seconds['bfloat16']:.2f} | {100 * product_share(ours):.0f} % | "
          f"{peak_ours:.2f} | {peak_direct:.2f} |", flush=True)  # fmt: skip


def product_share(ours: Ours) -> float:
    """The part of a step's operator time that matrix products take."""
    ours.step()
    with torch.profiler.profile() as profile:
        ours.step()
    events = profile.key_averages()
    inside = sum(
        event.self_cpu_time_total for event in events if event.key.removeprefix("aten::") in PRODUCTS
    )
    return inside / sum(event.self_cpu_time_total for event in events)


def ceiling(rounds: int) -> None:
    """What a product alone gives: by MKL, by oneDNN, in bfloat16."""
    x, weight = torch.randn(2560, 1024), torch.randn(4096, 1024)
    half = x.bfloat16(), weight.bfloat16()
    seconds = interleaved(
        {
            "torch's own, float32": lambda: F.linear(x, weight),
            "here, float32": lambda: processor.product(x, weight),
            "bfloat16": lambda: F.linear(*half),
        },
        4 * rounds,
    )
    print("\nA product alone, 2560 x 1024 x 4096, forward\n\n| product | ms | GFLOP/s |\n| --- | --- | --- |")
    for name, value in seconds.items():
        print(f"| {name} | {value * 1e3:.1f} | {2 * 2560 * 1024 * 4096 / value / 1e9:.0f} |")


def epoch(n_videos: int, batch: int) -> float:
    """Seconds of a training epoch, both passes, on a set of this many videos made up on the spot."""
    pairs = [ours_and_direct(name, n_videos=batch)[0] for name in ("cluster-guided", "contrastive")]
    start = time.perf_counter()
    for ours in pairs:
        for _ in range(n_videos // batch):
            ours.step()
    return time.perf_counter() - start


def grow(batch: int) -> None:
    """Time and memory of a training epoch as the videos grow."""
    print("\n| videos of a training epoch | seconds | peak memory, GB |\n| --- | --- | --- |")
    for n in (4 * batch, 8 * batch, 16 * batch):
        seconds, peak = measured(epoch, n, batch)
        print(f"| {n:,} | {seconds:.1f} | {peak:.2f} |", flush=True)


def on_cuda(batch: int) -> None:
    """Seconds of an epoch of FCVID's size and the share of them in which the GPU computes."""
    device = torch.device("cuda")
    print("\n| stage | precision | seconds of an FCVID epoch | GPU busy |\n| --- | --- | --- | --- |")
    for stage, names in {"pretrain": ["pretrain"], "train": ["cluster-guided", "contrastive"]}.items():
        for bfloat16 in (False, True):
            total, busy = 0.0, []
            for name in names:
                ours, _ = ours_and_direct(name, n_videos=batch)
                ours.net.to(device).bfloat16 = bfloat16
                source = ours.frames.pin_memory()  # synthetic: the same batch, copied anew for every step
                ours.optimizer = torch.optim.Adam(ours.net.parameters(), 1e-4, fused=True)
                n_steps = -(-FCVID_VIDEOS // batch)

                def steps(n: int, ours: Ours = ours, source: Tensor = source) -> float:
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    for _ in range(n):
                        ours.frames = source.to(device, non_blocking=True)
                        ours.step()
                    torch.cuda.synchronize()
                    return time.perf_counter() - start

                steps(10)
                total += steps(n_steps)
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                    seconds = steps(20)
                kernels = sum(event.self_device_time_total for event in profile.key_averages())
                busy.append(min(1.0, kernels / 1e6 / seconds))
            precision = "bfloat16" if bfloat16 else "float32"
            print(
                f"| {stage} | {precision} | {total:.1f} | {100 * sum(busy) / len(busy):.0f} % |", flush=True
            )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=list(PASSES))
    args = parser.parse_args()
    print(describe())
    hidden = ", ".join(
        f"{name} {n_hidden_frames(N_FRAMES, getattr(CFG, PASSES[name]))}" for name in args.passes
    )
    print(f"\nBatch {args.batch}, L = {N_FRAMES}, frames hidden: {hidden}; medians of {args.rounds}\n")
    print("| pass | direct, s | here, s | times faster | without oneDNN | bfloat16: times faster | "
          "than without oneDNN | in matrix products | peak here, GB | direct, GB |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in args.passes:
        compare(name, args.batch, args.rounds)
    ceiling(args.rounds)
    grow(args.batch)
    if torch.cuda.is_available():
        on_cuda(args.batch)


if __name__ == "__main__":
    main()
