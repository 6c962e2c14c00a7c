"""Whole training steps at the published sizes against the direct formulation: time, memory, where time goes.

    OMP_WAIT_POLICY=passive python -m bench.step
    python -m bench.step --rounds 9 --batch 64 --passes bth-mask bth-pairs

The direct formulation stands in ``bench/direct.py`` and ``bench/direct_bth.py``; both start from the same
weights, see the same batch and masks, and their losses must agree to 1e-5 before anything is timed. A step is
forward, losses, backward and Adam: fused here, PyTorch's default there. On a CUDA device an epoch of FCVID's
size is timed too.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bth.model as bth_model
import model
from bench import direct, direct_bth
from bench.machine import describe, interleaved, measured
from bth.model import BTH, Attention, Norm, cluster_loss, mask_loss, neighborhood_loss
from bth.pairs import draw_disturbance
from bth.settings import Own
from data import draw_views, generator, n_hidden_frames
from formats import processor
from pretrain import Cfg

PUBLISHED = (4096, 1024, 1024, 64, 800)  # D, H, H', bits, n_clusters
BTH_PUBLISHED = (4096, 256, 64)  # D, H, bits
FCVID_VIDEOS, N_FRAMES, BATCH = 45_585, 25, 128
PASSES = {"pretrain": "p1", "cluster-guided": "p2", "contrastive": "p2"}
BTH_PASSES = ("bth-mask", "bth-pairs")  # a batch is as many videos, as many pairs
CFG, OWN = Cfg(), Own()
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


@dataclass
class OursBTH(Ours):
    """A pass of BTH on one batch; its ``mask`` is the plan of the disturbance."""

    replacement: Tensor | None = None  # (R, D)
    target: Tensor | None = None  # (B,)
    nearest: Tensor | None = None  # (2, B, H)

    def loss(self) -> Tensor:
        """The loss of the pass, as the stages have it."""
        places = np.concatenate([np.flatnonzero(self.mask.zero), np.flatnonzero(self.mask.replace)])
        frames = self.frames.flatten(0, -3)
        out = self.net.masked(frames, torch.from_numpy(places), self.replacement)
        return self.with_pairs(out.loss, out.codes, out.hidden)

    def loss_of_restored_frames(self) -> Tensor:
        """The same by ``forward`` and ``mask_loss``, on a disturbed copy of the batch."""
        disturbed = direct_bth.disturb(self.frames, self.mask, self.replacement)
        out = self.net(disturbed.flatten(0, -3))
        loss = mask_loss(out.reconstruction, self.frames.flatten(0, -3))
        return self.with_pairs(loss, out.codes, out.hidden)

    def with_pairs(self, loss: Tensor, codes: Tensor, hidden: Tensor) -> Tensor:
        """The weighted sum of the losses of bth.train."""
        if self.name == "bth-mask":
            return loss
        pull = sum(cluster_loss(*each) for each in zip(hidden.chunk(2), self.nearest, strict=True))
        near = neighborhood_loss(*codes.chunk(2), self.target)
        return OWN.mask_weight * loss + OWN.neighborhood_weight * near + OWN.cluster_weight * pull


class DirectBTH(OursBTH):
    """The same pass in the direct formulation."""

    def loss(self) -> Tensor:
        """The loss of the pass as published, a forward for each video of a pair."""
        disturbed = direct_bth.disturb(self.frames, self.mask, self.replacement)
        if self.name == "bth-mask":
            return F.mse_loss(self.net(disturbed)[1], self.frames)
        return direct_bth.pair_loss(self.net, self.frames, disturbed, self.target, self.nearest)


def bth_ours_and_direct(
    name: str, sizes: tuple[int, ...] = BTH_PUBLISHED, n_videos: int = BATCH, n_frames: int = N_FRAMES
) -> tuple[OursBTH, DirectBTH]:
    """A pass of BTH in both formulations, with equal weights, on the same random batch."""
    torch.manual_seed(0)
    net, other = BTH(*sizes), direct_bth.DirectBTH(*sizes)
    other.load_state_dict(net.state_dict())
    shape = (n_videos, n_frames) if name == "bth-mask" else (2, n_videos, n_frames)
    frames = torch.randn(*shape, sizes[0])
    plan = draw_disturbance(shape, n_videos, generator(0, name))
    others = torch.randn(int(plan.replace.sum()), sizes[0])
    target, nearest = torch.randn(n_videos).sign(), torch.randn(2, n_videos, sizes[1])
    adam = torch.optim.Adam(net.parameters(), 3e-4, fused=True)
    plain = torch.optim.Adam(other.parameters(), 3e-4)
    return (
        OursBTH(net, name, frames, plan, adam, others, target, nearest),
        DirectBTH(other, name, frames, plan, plain, others, target, nearest),
    )


def both(name: str, n_videos: int) -> tuple[Ours, Ours]:
    """A pass of either system, here and direct, at the published sizes."""
    return (bth_ours_and_direct if name in BTH_PASSES else ours_and_direct)(name, n_videos=n_videos)


def check(ours: Ours, other: Ours) -> None:
    """Compare the losses, dropout off; a bench of something else would be worth nothing."""
    with torch.no_grad():
        one, two = (float(each.loss()) for each in (ours, other) if each.net.eval())
    if abs(one - two) > 1e-5 * abs(two):
        raise SystemExit(f"{ours.name}: the losses differ, {one} and {two} in the direct formulation")
    ours.net.train(), other.net.train()


def three_steps(formulation: int, name: str, batch: int) -> None:
    """Three steps of one formulation, for a process of its own."""
    pair = both(name, batch)[formulation]
    for _ in range(3):
        pair.step()


def other_library(function: Callable[[], None]) -> None:
    """Call a function with products by the library that ``processor`` did not choose."""
    chosen = processor.prefers_onednn()
    with patch.object(processor, "prefers_onednn", lambda: not chosen):
        function()


def in_bfloat16(ours: Ours) -> None:
    """A step with products in bfloat16."""
    ours.net.bfloat16 = True
    ours.step()
    ours.net.bfloat16 = False


def compare(name: str, batch: int, rounds: int) -> None:
    """One row for a pass: seconds of a step in each way, interleaved."""
    ours, other = both(name, batch)
    check(ours, other)
    ways = {
        "direct": other.step,
        "here": ours.step,
        "other library": lambda: other_library(ours.step),
        "bfloat16": lambda: in_bfloat16(ours),
    }
    if not processor.has_bfloat16():  # emulated, it would take the rest of the day
        del ways["bfloat16"]
    seconds = interleaved(ways, rounds)
    peaks = [measured(three_steps, number, name, batch)[1] for number in (0, 1)]
    base = seconds["here"]
    ratios = [
        f"{seconds[way] / base:.2f}" if way in seconds else "-" for way in ("other library", "bfloat16")
    ]
    print(f"| {name} | {seconds['direct']:.3f} | {base:.3f} | {seconds['direct'] / base:.2f} | "
          f"{' | '.join(ratios)} | {100 * product_share(ours):.0f} % | {peaks[0]:.2f} | {peaks[1]:.2f} |",
          flush=True)  # fmt: skip


def scaled_dot_product(attention: Attention, x: Tensor, dropout: float) -> Tensor:
    """BTH's attention by PyTorch's function, three products before it."""
    q, k, v = (layer(x)[:, None] for layer in (attention.query, attention.key, attention.value))
    return attention.output(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)[:, 0])


def bth_choices(batch: int, rounds: int) -> None:
    """What each part of BTH's step costs if done the other way, all others as they are."""
    ours, _ = bth_ours_and_direct("bth-pairs", n_videos=batch)

    def with_patch(target: object, name: str, other: Callable) -> Callable[[], None]:
        def step() -> None:
            with patch.object(target, name, other):
                ours.step()

        return step

    seconds = interleaved(
        {
            "here": ours.step,
            "frames restored and compared, batch copied": with_patch(
                ours, "loss", ours.loss_of_restored_frames
            ),
            "F.dropout": with_patch(bth_model, "drop", F.dropout),
            "norm by std": with_patch(Norm, "forward", direct_bth.Norm.forward),
            "attention by scaled_dot_product_attention": with_patch(Attention, "forward", scaled_dot_product),
            "products by the other library": lambda: other_library(ours.step),
        },
        rounds,
    )
    print(
        f"\nbth-pairs, batch {batch}: one part done the other way\n\n| part | times the step |\n| --- | --- |"
    )
    for name, value in seconds.items():
        print(f"| {name} | {value / seconds['here']:.2f} |")


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
    """What a product alone gives, forward: by the library chosen, by the other one, in bfloat16."""
    chosen, other = ("oneDNN", "MKL") if processor.prefers_onednn() else ("MKL", "oneDNN")
    print(f"\nFloat32 products by {chosen}\n\n| rows x in x out | {chosen}, GFLOP/s | {other} | bfloat16 |")
    print("| --- | --- | --- | --- |")
    for n, i, o in ((2560, 1024, 4096), (768, 4096, 1024), (3200, 4096, 320), (3200, 256, 1024)):
        x, weight = torch.randn(n, i), torch.randn(o, i)
        half = x.bfloat16(), weight.bfloat16()
        ways = {
            chosen: lambda x=x, weight=weight: processor.product(x, weight),
            other: lambda x=x, weight=weight: other_library(lambda: processor.product(x, weight)),
        }
        if processor.has_bfloat16():
            ways["bfloat16"] = lambda half=half: F.linear(*half)
        seconds = interleaved(ways, 4 * rounds)
        rates = [f"{2 * n * i * o / value / 1e9:.0f}" for value in seconds.values()]
        print(f"| {n} x {i} x {o} | {' | '.join(rates)} |", flush=True)


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
    parser.add_argument("--passes", nargs="+", default=[*PASSES, *BTH_PASSES], choices=[*PASSES, *BTH_PASSES])
    args = parser.parse_args()
    print(describe())
    hidden = ", ".join(f"{name} {n_hidden_frames(N_FRAMES, getattr(CFG, p))}" for name, p in PASSES.items())
    print(f"\nBatch {args.batch}, L = {N_FRAMES}, frames hidden: {hidden}; medians of {args.rounds}\n")
    print("| pass | direct, s | here, s | times faster | other library: times here | bfloat16: times here | "
          "in matrix products | peak here, GB | direct, GB |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in args.passes:
        compare(name, args.batch, args.rounds)
    ceiling(args.rounds)
    if "bth-pairs" in args.passes:
        bth_choices(args.batch, args.rounds)
    if set(PASSES) & set(args.passes):
        grow(args.batch)
    if torch.cuda.is_available():
        on_cuda(args.batch)


if __name__ == "__main__":
    main()
