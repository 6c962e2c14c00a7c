"""Frames out of videos: clips per second, where the time goes, one and two processes, memory over many clips.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m bench.extract

The clips are made first: 640 x 360, 30 s, 25 frames a second, H.264 with B-frames and a keyframe every 250
frames, a pattern that moves over another one. Every stage includes the one above it, so its own share is the
difference. Processes read clips the way the stage's own do: one thread each, frames prepared for
the backbone. Memory is what a process holds that no file stands behind, over many small clips.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from bench.machine import describe, interleaved, measured
from bench.store import anonymous
from formats import video
from formats.video import read_frames
from tools.backbones import open_backbone

SIZE, RATE, SECONDS, N_FRAMES = (640, 360), 25, 30, 25
SMALL, SMALL_SECONDS = (112, 112), 2


def make(path: Path, size: tuple[int, int], seconds: int, seed: int) -> Path:
    """Write a clip of moving patterns."""
    rng, (width, height) = np.random.default_rng(seed), size
    patterns = rng.integers(0, 128, (2, -(-height // 8), -(-width // 8), 3), np.uint8)
    patterns = patterns.repeat(8, 1).repeat(8, 2)[:, :height, :width]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "g": "250", "bf": "3"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(seconds * RATE):
            moved = np.roll(patterns[0], (i, 2 * i), (0, 1)) // 2 + np.roll(patterns[1], (2 * i, -i), (0, 1))
            frame = av.VideoFrame.from_ndarray(moved, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def prepared(path: Path, name: str) -> np.ndarray:
    """The frames of a clip as a backbone wants them, (L, C, H, W)."""
    if name not in BACKBONES:
        torch.set_num_threads(1)
        BACKBONES[name] = open_backbone(name)
    return np.stack(read_frames(path, N_FRAMES, BACKBONES[name].prepare).frames)


BACKBONES = {}  # of this process, by name


def stages(paths: list[Path], name: str, rounds: int) -> None:
    """Milliseconds a clip, one process."""
    prepared(paths[0], name)

    def network() -> None:
        with torch.no_grad():
            for path in paths:
                BACKBONES[name].network(torch.from_numpy(prepared(path, name)).float())

    def over(function: Callable[[Path], object]) -> Callable[[], None]:
        return lambda: [function(path) for path in paths] and None

    ways = {
        "packets listed": over(video._list),
        "decoded, chosen frames as RGB": over(lambda path: read_frames(path, N_FRAMES, lambda _: None)),
        "prepared (resized)": over(lambda path: prepared(path, name)),
        f"network ({name})": network,
    }
    seconds, before = interleaved(ways, rounds), 0.0
    print(f"\n| one process, {N_FRAMES} frames of a clip | ms a clip | of it this stage | share |")
    print("| --- | --- | --- | --- |")
    for stage, value in seconds.items():
        share = 100 * (value - before) / seconds[f"network ({name})"]
        print(f"| {stage} | {1e3 * value / len(paths):.0f} | {1e3 * (value - before) / len(paths):.0f} | "
              f"{share:.0f} % |", flush=True)  # fmt: skip
        before = value


def processes(paths: list[Path], name: str, rounds: int) -> None:
    """Clips per second of one and of two processes that decode and prepare; the best of many rounds.

    The best, not the median: what else a shared machine does slows two processes more than one.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as one, context.Pool(2) as two:
        jobs = [(path, name) for path in paths]
        ways = {n: lambda pool=pool: pool.starmap(prepared, jobs, 1) for n, pool in ((1, one), (2, two))}
        timed = [interleaved(ways, 1, warm=not i) for i in range(5 * rounds)]
    seconds = {n: min(each[n] for each in timed) for n in ways}
    print("\n| processes | clips/s | times one |\n| --- | --- | --- |")
    for n, value in seconds.items():
        print(f"| {n} | {len(paths) / value:.1f} | {seconds[1] / value:.2f} |", flush=True)


def over_many(paths: list[Path], n_clips: int) -> list[float]:
    """MB that a process of its own holds, at each fifth of many clips, the first fifth being the start."""
    held = []
    for i in range(n_clips):
        read_frames(paths[i % len(paths)], N_FRAMES, np.asarray)
        if (i + 1) % (n_clips // 5) == 0:
            held.append(1e3 * anonymous())
    return held


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--many", type=int, default=5000, help="small clips, for the memory")
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{describe()} PyAV {av.__version__}.")
    with tempfile.TemporaryDirectory() as folder:
        paths = [make(Path(folder) / f"{i}.mp4", SIZE, SECONDS, i) for i in range(args.clips)]
        print(
            f"\n{len(paths)} clips of {SECONDS} s, {sum(path.stat().st_size for path in paths) / 1e6:.0f} MB"
        )
        stages(paths, args.backbone, args.rounds)
        processes(paths, args.backbone, args.rounds)
        small = [make(Path(folder) / f"small{i}.mp4", SMALL, SMALL_SECONDS, i) for i in range(8)]
        held, _ = measured(over_many, small, args.many)
    slope = 1e3 * (held[-1] - held[0]) / (0.8 * args.many)
    fifths = ", ".join(f"{each:.1f}" for each in held)
    print(
        f"\n{args.many:,} clips of {SMALL_SECONDS} s: {fifths} MB at each fifth, {slope:.2f} a thousand clips"
    )


if __name__ == "__main__":
    main()
