"""Whole training steps at the published sizes against the direct formulation: time, memory, where time goes.

    OMP_WAIT_POLICY=passive python -m bench.step
    python -m bench.step --rounds 9 --batch 64 --passes bth-mask bth-pairs

The passes stand in ``bench/passes.py``, here and in the direct formulation. Their losses must agree to 1e-5
before anything is timed. On a CUDA device an epoch of FCVID's size is timed too.
"""

import argparse
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

import bth.model as bth_model
import conmh.model as conmh_model
from bench import direct_bth, direct_conmh
from bench.machine import describe, interleaved, measured
from bench.passes import (
    BATCH,
    BTH_PASSES,
    CFG,
    CONMH,
    CONMH_PASS,
    N_FRAMES,
    PASSES,
    Ours,
    both,
    bth_ours_and_direct,
    conmh_ours_and_direct,
    ours_and_direct,
)
from bth.model import Attention, Norm
from conmh.model import ConMH
from data import n_hidden_frames
from formats import processor
from layers import position_encoding, take_frames

FCVID_VIDEOS = 45_585
# What the profiler calls a matrix product.
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mkldnn_linear", "mkldnn_linear_backward_weights",
            "mkldnn_linear_backward_input", "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention_for_cpu_backward")  # fmt: skip


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


def choices(ours: Ours, parts: dict[str, tuple[object, str, Callable]], batch: int, rounds: int) -> None:
    """What each part of a step costs if done the other way, all others as they are.

    Args:
        ours: the pass.
        parts: by what is done: of which object, which attribute, and what to put in its place.
        batch: videos of the pass, or pairs.
        rounds: how often each way is timed.
    """

    def other(part: tuple[object, str, Callable]) -> None:
        with patch.object(*part):
            ours.step()

    ways = {way: lambda part=part: other(part) for way, part in parts.items()}
    ways["products by the other library"] = lambda: other_library(ours.step)
    seconds = interleaved({"here": ours.step, **ways}, rounds)
    print(f"\n{ours.name}, batch {batch}: one part done the other way\n")
    print("| part | times the step |\n| --- | --- |")
    for way, value in seconds.items():
        print(f"| {way} | {value / seconds['here']:.2f} |", flush=True)


def bth_choices(batch: int, rounds: int) -> None:
    """Those of BTH."""
    ours, _ = bth_ours_and_direct("bth-pairs", n_videos=batch)
    parts = {
        "frames restored and compared, batch copied": (ours, "loss", ours.loss_of_restored_frames),
        "F.dropout": (bth_model, "drop", F.dropout),
        "norm by std": (Norm, "forward", direct_bth.Norm.forward),
        "attention by scaled_dot_product_attention": (Attention, "forward", scaled_dot_product),
    }
    choices(ours, parts, batch, rounds)


def embed_all(net: ConMH, frames: Tensor, visible: Tensor) -> Tensor:
    """ConMH's codes, every frame embedded once for both views."""
    encoder = net.encoder
    e = encoder.embed(frames) + position_encoding(frames.shape[1], encoder.embed.out_features)
    e = take_frames(e, visible)  # (2B, V, H)
    for block in encoder.blocks:
        e = block(e)
    return net.hash_layer(encoder.head(encoder.norm(e)))


def conmh_choices(batch: int, rounds: int) -> None:
    """Those of ConMH."""
    ours, _ = conmh_ours_and_direct(n_videos=batch)
    parts = {
        "hidden frames reconstructed and compared": (ours, "loss", ours.loss_of_hidden_frames),
        "every frame embedded, then the visible taken": (ConMH, "frame_codes", embed_all),
        "attention written out": (conmh_model, "attend", direct_conmh.attend),
        "gelu written out": (F, "gelu", direct_conmh.gelu),
        "Adam's default": (ours, "optimizer", torch.optim.Adam(ours.net.parameters(), 1e-4)),
    }
    choices(ours, parts, batch, rounds)


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
    names = [*PASSES, *BTH_PASSES, CONMH_PASS]
    parser.add_argument("--passes", nargs="+", default=names, choices=names)
    args = parser.parse_args()
    print(describe())
    ratios = {name: getattr(CFG, p) for name, p in PASSES.items()} | {CONMH_PASS: CONMH.p}
    hidden = ", ".join(f"{name} {n_hidden_frames(N_FRAMES, ratio)}" for name, ratio in ratios.items())
    print(f"\nBatch {args.batch}, L = {N_FRAMES}, frames hidden: {hidden}; medians of {args.rounds}\n")
    print("| pass | direct, s | here, s | times faster | other library: times here | bfloat16: times here | "
          "in matrix products | peak here, GB | direct, GB |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in args.passes:
        compare(name, args.batch, args.rounds)
    ceiling(args.rounds)
    if "bth-pairs" in args.passes:
        bth_choices(args.batch, args.rounds)
    if CONMH_PASS in args.passes:
        conmh_choices(args.batch, args.rounds)
    if set(PASSES) & set(args.passes):
        grow(args.batch)
    if torch.cuda.is_available():
        on_cuda(args.batch)


if __name__ == "__main__":
    main()
