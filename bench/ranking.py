"""Hamming ranking and mAP@K against the direct formulation, and against FAISS where it is installed.

    python -m bench.ranking                                     # a square of 20,000, then growth
    python -m bench.ranking --queries 45600 --database 45600    # FCVID's size: 18 GB for the direct versions
    python -m bench.ranking --zeros 0.05                        # codes with zeros, which FAISS has not
    python -m bench.ranking --large                             # 10,000 queries x 1,000,000 codes

Both direct versions build the whole distance matrix in one product: "sort" then sorts every row stably, which
gives the same ranking; "topk" takes one `torch.topk`, which leaves the order of ties to chance.
"""

import argparse
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bench.machine import describe, interleaved, measured
from formats.bits import count_distinct
from metrics import evaluate, hamming_distance, mean_average_precision

KS = [5, 20, 40, 60, 80, 100]
GROWTH = "\n| queries | database | seconds | ns per pair | peak memory, GB |\n| --- | --- | --- | --- | --- |"


def data(
    queries: int, database: int, bits: int, classes: int, flipped: float, zeros: float
) -> tuple[Tensor, ...]:
    """Noisy copies of one code per class and labels.

    `flipped` of their bits are changed (0.5: random codes), then `zeros` of their entries set to 0.
    """
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.rand(classes, bits, generator=generator) < 0.5
    out = []
    for n in (queries, database):
        label = torch.randint(classes, (n,), generator=generator)
        codes = prototypes[label] ^ (torch.rand(n, bits, generator=generator) < flipped)
        codes = codes.to(torch.int8) * 2 - 1
        if zeros:
            codes[torch.rand(n, bits, generator=generator) < zeros] = 0
        out.append((codes, one_hot(label, classes).bool()))
    (query, query_labels), (base, base_labels) = out
    return query, base, query_labels, base_labels


def direct_sort(
    query: Tensor, database: Tensor, query_labels: Tensor, database_labels: Tensor
) -> dict[int, float]:
    """The whole distance matrix, one stable sort per row."""
    distance = hamming_distance(query, database).numpy()
    ap = np.empty((len(query), len(KS)))
    query_labels, database_labels = query_labels.numpy(), database_labels.numpy()
    ranks = np.arange(1, max(KS) + 1)
    for i, row in enumerate(distance):
        order = np.argsort(row, kind="stable")[: max(KS)]
        relevant = (query_labels[i] & database_labels[order]).any(1)
        ap[i] = (np.cumsum(relevant * np.cumsum(relevant) / ranks) / ranks)[np.array(KS) - 1]
    return {k: math.fsum(column) / len(ap) for k, column in zip(KS, ap.T, strict=True)}


def direct_topk(
    query: Tensor, database: Tensor, query_labels: Tensor, database_labels: Tensor
) -> dict[int, float]:
    """The whole distance matrix, one topk, relevance gathered from the whole relevance matrix."""
    order = hamming_distance(query, database).topk(max(KS), largest=False).indices  # (Q, K)
    relevance = query_labels.float() @ database_labels.float().T > 0  # (Q, N)
    relevant = relevance.gather(1, order)
    ranks = torch.arange(1, max(KS) + 1).double()
    ap = (relevant * relevant.cumsum(1) / ranks).cumsum(1) / ranks
    return {k: float(ap[:, k - 1].mean()) for k in KS}


def package(
    query: Tensor, database: Tensor, query_labels: Tensor, database_labels: Tensor
) -> dict[int, float]:
    """This package, all its metrics."""
    return evaluate(query, database, query_labels, database_labels, KS).map


def package_map(
    query: Tensor, database: Tensor, query_labels: Tensor, database_labels: Tensor
) -> dict[int, float]:
    """This package, mAP@K and what else follows from the first K of every ranking."""
    return mean_average_precision(query, database, query_labels, database_labels, KS)


def faiss_search(query: Tensor, database: Tensor, *labels: Tensor) -> None:
    """FAISS's exact binary search: the ranking alone, ties in its own order."""
    import faiss

    index = faiss.IndexBinaryFlat(query.shape[1])
    index.add(np.packbits(database.numpy() > 0, axis=1))
    index.search(np.packbits(query.numpy() > 0, axis=1), max(KS))


VERSIONS = {
    "package": package,
    "package, mAP@K alone": package_map,
    "direct, topk": direct_topk,
    "direct, sort": direct_sort,
}


def once(name: str, *sizes: float) -> dict[str, float]:
    """Seconds of one call on data of these sizes; for a process of its own."""
    case = data(*sizes)
    return interleaved({name: lambda: VERSIONS[name](*case)}, rounds=1, warm=False)


def chosen() -> str:
    """How the package ranks here, and what of the processor bears on it."""
    abilities = ("popcnt", "avx2", "avx512_f", "avx512_vpopcntdq", "avx512_bf16")
    found = torch.cpu.get_capabilities()
    found = ", ".join(name for name in abilities if found.get(name)) or "none of " + ", ".join(abilities)
    return f"Ranking by counted bits of packed words, {torch.get_num_threads()} threads. Processor: {found}."


def compare(sizes: tuple, rounds: int) -> None:
    """Time and memory of every version at one size."""
    case = data(*sizes)
    versions = dict(VERSIONS)
    try:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        versions["FAISS, search alone"] = faiss_search
    except ImportError:
        pass
    results = {}

    def run(name: str) -> None:
        results[name] = versions[name](*case)

    # The slow one takes a minute at FCVID's size: once is enough for a ratio of that kind.
    quick = {name: lambda name=name: run(name) for name in versions if not name.startswith("direct")}
    slow = {name: lambda name=name: run(name) for name in versions if name.startswith("direct")}
    seconds = interleaved(quick, rounds) | interleaved(slow, 1, warm=False)
    assert results["package"].keys() == results["direct, sort"].keys()
    worst = max(abs(results["package"][k] - results["direct, sort"][k]) for k in KS)
    queries, database, bits, _, flipped, zeros = sizes
    title = f"{queries:,} x {database:,}, {bits} bits, K = {max(KS)}"
    print(f"\n{title}; bits flipped: {flipped:.0%}, entries 0: {zeros:.0%}\n")
    print("| version | seconds | times the package's | peak memory, GB |\n| --- | --- | --- | --- |")
    for name, value in seconds.items():
        peak = f"{measured(once, name, *sizes)[1]:.2f}" if name in VERSIONS else ""
        print(f"| {name} | {value:.2f} | {value / seconds['package']:.1f} | {peak} |", flush=True)
    ratio = seconds["package"] / seconds["package, mAP@K alone"]
    print(f"\nAll metrics take {ratio:.2f} times as long as mAP@K alone.")
    print(
        f"\nLargest difference between the package and the stable full sort in mAP@K: {worst:.1e}", flush=True
    )


def grow(*kind: float) -> None:
    """Time and memory as queries and database grow."""
    print(GROWTH)
    squares = [(n, n) for n in (5_000, 10_000, 20_000)]
    for queries, database in squares + [(2_000, n) for n in (50_000, 100_000, 200_000)]:
        growth_row(queries, database, *kind)


def growth_row(*sizes: float) -> None:
    """One row of the growth table, measured in a process of its own."""
    queries, database = sizes[:2]
    seconds, peak = measured(once, "package", *sizes)
    seconds = seconds["package"]
    pair = seconds / queries / database * 1e9
    print(f"| {queries:,} | {database:,} | {seconds:.2f} | {pair:.2f} | {peak:.2f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--database", type=int, default=20_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--classes", type=int, default=239)
    parser.add_argument("--flipped", type=float, default=0.2, help="share of bits flipped; 0.5: random codes")
    parser.add_argument("--zeros", type=float, default=0, help="share of entries that are 0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="10,000 x 1,000,000, the package alone")
    args = parser.parse_args()
    print(describe())
    print(chosen())
    if args.large:
        print(GROWTH)
        growth_row(10_000, 1_000_000, args.bits, 80, args.flipped, args.zeros)
        _, codes, *_ = data(1, 1_000_000, args.bits, 80, args.flipped, args.zeros)
        seconds = interleaved({"distinct": lambda: count_distinct(codes)}, rounds=3)["distinct"]
        print(f"\nDistinct codes among them: {count_distinct(codes):,}, counted in {seconds:.2f} s")
        return
    kind = args.bits, args.classes, args.flipped, args.zeros
    compare((args.queries, args.database, *kind), args.rounds)
    grow(*kind)


if __name__ == "__main__":
    main()
