"""k-means on hash codes against the direct formulation, and against scikit-learn where it is installed.

    python -m bench.kmeans                              # FCVID's two views: 91,170 codes, 800 centers
    python -m bench.kmeans --points 20000 --clusters 200

All start from the same centers, random points. "direct" is Lloyd's method in the obvious way: the whole
distance matrix, one argmin, sums by a one-hot product; its rounds cost alike, so five of them must do.
Rounding sends the others different ways after a while, and then they take different numbers of rounds: hence
the time per round, and the inertia. Peak memory is that of two rounds.
"""

import argparse
import warnings
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bench.machine import describe, interleaved, measured, peak_memory
from cluster import kmeans, plusplus

KINDS = {  # number of prototypes (None: one per center), share of bits flipped
    "random": (1, 0.5),
    "prototypes": (None, 0.1),
    "classes": (239, 0.1),
}


def data(kind: str, points: int, bits: int, clusters: int) -> tuple[Tensor, Tensor]:
    """Noisy copies of prototypes, float32, and random ones of them to start from."""
    prototypes, flipped = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(prototypes or clusters, bits, generator=generator) < 0.5
    codes = codes[torch.randint(len(codes), (points,), generator=generator)]
    codes = (codes ^ (torch.rand(points, bits, generator=generator) < flipped)).float() * 2 - 1
    return codes, codes[torch.randperm(points, generator=generator)[:clusters]]


def package(x: Tensor, init: Tensor, max_iter: int = 300) -> tuple[int, float]:
    """This package: (rounds, inertia)."""
    result = kmeans(x, len(init), init=init, max_iter=max_iter)
    return result.n_iter, result.inertia


def direct(x: Tensor, centers: Tensor, max_iter: int = 5) -> tuple[int, float]:
    """Lloyd's rounds with whole matrices; an empty cluster keeps its center."""
    tolerance = 1e-4 * float(x.var(0, correction=0).mean())
    before = None
    for n_iter in range(1, max_iter + 1):  # noqa: B007
        distance = (x.square().sum(1, keepdim=True) - 2 * x @ centers.T + centers.square().sum(1)).clamp(
            min=0
        )
        least, labels = distance.min(1)
        if before is not None and torch.equal(labels, before):
            break
        member = one_hot(labels, len(centers)).float()  # (N, n_clusters)
        counts = member.sum(0)[:, None]
        means = torch.where(counts > 0, member.T @ x / counts.clamp(min=1), centers)
        shift = float((means - centers).square().sum())
        centers, before = means, labels
        if shift <= tolerance:
            break
    return n_iter, float(least.double().sum())


def scikit(algorithm: str, x: Tensor, init: Tensor, max_iter: int = 300) -> tuple[int, float]:
    """scikit-learn's k-means with the same stopping rule."""
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = KMeans(
            len(init), init=init.numpy(), n_init=1, tol=1e-4, max_iter=max_iter, algorithm=algorithm
        )
        model.fit(x.numpy())
    return model.n_iter_, model.inertia_


def versions() -> dict:
    """Everything to compare, by name."""
    found = {"package": package, "direct": direct}
    try:
        import sklearn  # noqa: F401
    except ImportError:
        return found
    for algorithm in ("lloyd", "elkan"):
        found[f"scikit-learn, {algorithm}"] = partial(scikit, algorithm)
    return found


def two_rounds(name: str, *sizes) -> None:
    """Two rounds on data of these sizes; for a process of its own."""
    versions()[name](*data(*sizes), max_iter=2)


def compare(kind: str, points: int, bits: int, clusters: int, rounds: int) -> None:
    """Time and memory of every version on one kind of codes."""
    case = data(kind, points, bits, clusters)
    results = {}

    def run(name: str) -> None:
        results[name] = versions()[name](*case)

    seconds = interleaved({name: lambda name=name: run(name) for name in versions()}, rounds, warm=False)
    print(f"\n{kind}: {points:,} codes, {bits} bits, {clusters} centers\n")
    print("| version | seconds | rounds | ms per round | times the package's | inertia | peak memory, GB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    package_round = seconds["package"] / results["package"][0]
    for name, value in seconds.items():
        n_iter, inertia = results[name]
        ratio = value / n_iter / package_round
        peak = peak_memory(two_rounds, name, kind, points, bits, clusters)
        cells = (
            f"{value:.2f} | {n_iter} | {value / n_iter * 1e3:.0f} | {ratio:.1f} | {inertia:.0f} | {peak:.2f}"
        )
        print(f"| {name} | {cells} |", flush=True)


def seed(points: int, bits: int, clusters: int, rounds: int) -> None:
    """Time of the k-means++ seeding alone."""
    x, _ = data("classes", points, bits, clusters)
    functions = {"package": lambda: plusplus(x, clusters)}
    try:
        from sklearn.cluster import kmeans_plusplus

        functions["scikit-learn"] = lambda: kmeans_plusplus(x.numpy(), clusters, random_state=0)
    except ImportError:
        pass
    print("\n| k-means++ seeding | seconds |\n| --- | --- |")
    for name, value in interleaved(functions, rounds, warm=False).items():
        print(f"| {name} | {value:.2f} |", flush=True)


def grow(points: int, bits: int, clusters: int) -> None:
    """Time and memory as the points grow: five rounds, so that their number does not matter."""
    print("\n| points | ms per round | peak memory, GB |\n| --- | --- | --- |")
    for n in (points // 4, points // 2, points):
        seconds, peak = measured(five_rounds, n, bits, clusters)
        print(f"| {n:,} | {seconds / 5 * 1e3:.0f} | {peak:.2f} |", flush=True)


def five_rounds(points: int, bits: int, clusters: int) -> float:
    """Seconds of five rounds on random codes."""
    x, init = data("random", points, bits, clusters)
    return interleaved({"package": lambda: kmeans(x, clusters, init=init, max_iter=5)}, rounds=3)["package"]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=91_170)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=800)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument(
        "--rounds", type=int, default=1, help="runs of each version, of which the median counts"
    )
    args = parser.parse_args()
    print(describe())
    for kind in args.kinds:
        compare(kind, args.points, args.bits, args.clusters, args.rounds)
    seed(args.points, args.bits, args.clusters, args.rounds)
    grow(args.points, args.bits, args.clusters)


if __name__ == "__main__":
    main()
