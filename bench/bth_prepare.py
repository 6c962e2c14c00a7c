"""BTH's preparation at FCVID's size: anchors, nearest anchors and similarity tags, in time and memory.

    python -m bench.bth_prepare
    python -m bench.bth_prepare --videos 8000 --anchors 400

Three kinds of latents, each in a process of its own; "pairs" is the draw of an epoch's partners. Then, at a
size where N x N matrices fit, the tags against the dense formula: equal, and how much faster.
"""

import argparse
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from bench.machine import describe, interleaved, measured
from bth.pairs import draw_pairs
from bth.prepare import find_anchors, nearest_anchors
from bth.similarity import THRESHOLD, Similarity, anchor_graph, similarity_blocks, write_similarity

KINDS = ("clustered", "gaussian", "heavy-tailed")
SEED = 3346


def make_latents(kind: str, n_videos: int, width: int = 256) -> torch.Tensor:
    """Latents (N, width): 240 clusters, one Gaussian, or Student's t with 3 degrees of freedom."""
    rng = np.random.default_rng(SEED)
    if kind == "heavy-tailed":
        return torch.from_numpy(rng.standard_t(3, (n_videos, width)).astype(np.float32))
    x = rng.standard_normal((n_videos, width), dtype=np.float32)
    if kind == "clustered":
        x += 2 * rng.standard_normal((240, width), dtype=np.float32)[rng.integers(240, size=n_videos)]
    return torch.from_numpy(x)


def prepare(kind: str, n_videos: int, n_anchors: int) -> dict:
    """Seconds of every step, and the number of anchors and entries; for a process of its own."""
    latents = make_latents(kind, n_videos)
    result = {}

    def timed(name, function, *arguments):
        start = time.perf_counter()
        value = function(*arguments)
        result[name] = time.perf_counter() - start
        return value

    anchors = timed("anchors", find_anchors, latents, n_anchors, np.random.default_rng(SEED))
    squared, indices = timed("nearest", nearest_anchors, latents, anchors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sim_matrix.h5"
        with h5py.File(path, "w") as file:
            blocks = similarity_blocks(squared, indices, len(anchors))
            result["entries"] = timed("similarity", write_similarity, file, blocks)
        with Similarity(path, n_videos) as similarity:
            rng = np.random.default_rng(SEED)
            timed("pairs", draw_pairs, similarity, rng.permutation(n_videos), rng)
    return result | {"m": len(anchors)}


def dense_tags(squared: np.ndarray, indices: np.ndarray, n_anchors: int) -> np.ndarray:
    """The formula with N x N matrices in float64."""
    tied = {}
    for k in (3, 4, 5):
        graph = anchor_graph(squared, indices, n_anchors, k)
        z = np.zeros((len(squared), n_anchors))
        np.put_along_axis(z, graph.anchors, graph.weights, axis=1)
        total = z.sum(0)
        inverse = np.divide(1, total, out=np.zeros_like(total), where=total > 0)
        tied[k] = ((z * inverse) @ z.T > THRESHOLD).astype(np.int8)
    return 2 * (tied[5] - tied[4]) + tied[3]


def against_dense(kind: str, n_videos: int, n_anchors: int, rounds: int) -> tuple[bool, float, float]:
    """Whether the tags are equal, and the seconds of the dense formula and of ours."""
    latents = make_latents(kind, n_videos)
    anchors = find_anchors(latents, n_anchors, np.random.default_rng(SEED))
    case = (*nearest_anchors(latents, anchors), len(anchors))
    results = {}

    def dense() -> None:
        results["dense"] = dense_tags(*case)

    def ours() -> None:
        results["ours"] = list(similarity_blocks(*case))

    seconds = interleaved({"dense": dense, "ours": ours}, rounds)
    found = np.zeros_like(results["dense"])
    counts = np.concatenate([np.diff(block.indptr) for block in results["ours"]])
    columns, tag = (
        np.concatenate([getattr(block, key) for block in results["ours"]]) for key in ("indices", "tag")
    )
    found[np.repeat(np.arange(n_videos), counts), columns] = tag
    return np.array_equal(found, results["dense"]), seconds["dense"], seconds["ours"]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=45_585)
    parser.add_argument("--anchors", type=int, default=2_000)
    parser.add_argument("--dense-videos", type=int, default=8_000)
    parser.add_argument("--dense-anchors", type=int, default=400)
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs against the dense formula; the median counts"
    )
    args = parser.parse_args()
    print(describe())

    print(f"\n{args.videos:,} latents of width 256, {args.anchors:,} anchors asked for; seconds\n")
    print(
        "| latents | anchors | k-means | nearest | tags | together | million tags | peak memory, GB | pairs |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        r, peak = measured(prepare, kind, args.videos, args.anchors)
        steps = [r["anchors"], r["nearest"], r["similarity"]]
        times = " | ".join(f"{seconds:.1f}" for seconds in (*steps, sum(steps)))
        print(
            f"| {kind} | {r['m']} | {times} | {r['entries'] / 1e6:.1f} | {peak:.2f} | {r['pairs']:.1f} |",
            flush=True,
        )

    print(f"\nTags of {args.dense_videos:,} latents, {args.dense_anchors:,} anchors; seconds\n")
    print("| latents | dense N x N | ours | ratio | same tags |\n| --- | --- | --- | --- | --- |")
    for kind in KINDS:
        same, dense, ours = against_dense(kind, args.dense_videos, args.dense_anchors, args.rounds)
        print(
            f"| {kind} | {dense:.2f} | {ours:.2f} | {dense / ours:.1f} | {'yes' if same else 'NO'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
