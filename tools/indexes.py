"""What searches a file of codes: all distances, FAISS's approximate indexes, a LanceDB table.

Each takes the database and k, and gives a function from packed queries to their nearest videos. FAISS and
LanceDB are optional (``requirements-search.txt``). A code whose bits fill no whole byte ends in zeros on both
sides, which changes no distance.

Axes: q queries, N database videos, k neighbours.
"""

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from formats.bits import unpack
from formats.codefile import CodeFile
from formats.files import BadInput, optional_package, progress, write_whole
from metrics import nearest_codes

SPARE = 32  # neighbours asked for beyond k, to see whether the k-th ties with the next
ANSWERS = 2**22  # neighbours of all queries that are asked for at once, to bound memory
LINKS, BUILD_CANDIDATES, SEARCH_CANDIDATES = 32, 200, 256  # of the graph
# As many lists as so many roots of N, none of fewer videos; lists searched; videos a list to train with.
LISTS, LEAST, PROBES, TRAINING = 4, 40, 64, 256
TABLE = "codes"  # of LanceDB
ROWS = 1 << 16  # of a batch written to it

Found = tuple[np.ndarray, np.ndarray]  # video numbers and distances, both int64 (q, k), nearest first
Search = Callable[[np.ndarray], Found]  # from packed queries (q, bytes)


def exact(database: CodeFile, k: int) -> Search:
    """All distances: by FAISS if it is there, else by the package's own ranking."""
    if importlib.util.find_spec("faiss") is None:
        codes = torch.from_numpy(unpack(database.codes, database.bits))

        def ranked(queries: np.ndarray) -> Found:
            found = nearest_codes(torch.from_numpy(unpack(queries, database.bits)), codes, k)
            return tuple(each.numpy() for each in found)

        return ranked
    index = faiss().IndexBinaryFlat(8 * database.codes.shape[1])
    index.add(database.codes)

    def some(queries: np.ndarray, n: int) -> Found:
        distances, videos = index.search(queries, n)
        return videos, distances

    return lambda queries: with_ties(some, queries, k, len(database))


def with_ties(some: Callable[[np.ndarray, int], Found], queries: np.ndarray, k: int, n_videos: int) -> Found:
    """The k nearest, ties by video number, of an engine that gives n nearest with ties as they fall.

    Where the last of those asked for ties with the k-th, further ones may: then twice as many are asked for.
    """
    n = min(k + SPARE, n_videos)
    videos, distances = ordered(*some(queries, n))
    open_rows = np.flatnonzero(distances[:, -1] == distances[:, k - 1])
    videos, distances = videos[:, :k].copy(), distances[:, :k].copy()
    while len(open_rows) and n < n_videos:
        n, still_open = min(2 * n, n_videos), []
        for rows in np.array_split(open_rows, -(-len(open_rows) * n // ANSWERS)):
            more, away = ordered(*some(queries[rows], n))
            videos[rows], distances[rows] = more[:, :k], away[:, :k]
            still_open.append(rows[away[:, -1] == away[:, k - 1]])
        open_rows = np.concatenate(still_open)
    return videos, distances


def ordered(videos: np.ndarray, distances: np.ndarray) -> Found:
    """Neighbours by distance, then by number; what an approximate index did not find, -1, comes last."""
    away = np.where(videos < 0, np.iinfo(np.int32).max, distances).astype(np.int64)
    order = np.lexsort((videos, away), axis=1)
    return np.take_along_axis(videos, order, 1), np.take_along_axis(away, order, 1)


def graph(database: CodeFile, k: int) -> Search:
    """FAISS's navigable small-world graph: approximate, fast, for tens of millions."""

    def build() -> object:
        index = faiss().IndexBinaryHNSW(8 * database.codes.shape[1], LINKS)
        index.hnsw.efConstruction = BUILD_CANDIDATES
        index.add(database.codes)
        return index

    index = kept(database, "hnsw", build)
    index.hnsw.efSearch = max(SEARCH_CANDIDATES, k)
    return approximate(index, k, database)


def lists(database: CodeFile, k: int) -> Search:
    """FAISS's inverted lists: approximate, small, quick to build."""

    def build() -> object:
        n_bits = 8 * database.codes.shape[1]
        n_lists = max(1, min(len(database) // LEAST, int(LISTS * len(database) ** 0.5)))
        index = faiss().IndexBinaryIVF(faiss().IndexBinaryFlat(n_bits), n_bits, n_lists)
        chosen = np.random.default_rng(0).permutation(len(database))[: TRAINING * n_lists]
        index.train(database.codes[np.sort(chosen)])
        index.add(database.codes)
        return index

    index = kept(database, "ivf", build)
    index.nprobe = PROBES
    return approximate(index, k, database)


def approximate(index: object, k: int, database: CodeFile) -> Search:
    """Search an approximate index.

    Raises:
        BadInput: it finds fewer than k videos of a query.
    """

    def search(queries: np.ndarray) -> Found:
        distances, videos = index.search(queries, k)
        videos, distances = ordered(videos, distances)
        if (videos < 0).any():
            raise BadInput(f"{database.path}: the index finds fewer than {k} of a query; search exactly")
        return videos, distances

    return search


def kept(database: CodeFile, kind: str, build: Callable[[], object]) -> object:
    """An index read from beside the database, or built and kept there; named by the codes that it holds.

    Raises:
        BadInput: it is damaged, or cannot be written.
    """
    path = database.path.with_name(f"{database.path.stem}.{kind}-{database.fingerprint}.faiss")
    check = path.with_suffix(".sha256")  # FAISS reads some damage without a word, and dies of other
    if path.exists() and check.exists():
        if check.read_text().strip() != sha256(path):
            raise BadInput(f"{path}: a damaged index; delete it, and it is built anew")
        return faiss().read_index_binary(str(path))
    index = build()
    write_whole(path, lambda temporary: faiss().write_index_binary(index, str(temporary)))
    write_whole(check, lambda temporary: temporary.write_text(f"{sha256(path)}\n"))
    print(f"{path}: built; the next search uses it again", file=sys.stderr)
    return index


def sha256(path: Path) -> str:
    """The digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lance(database: CodeFile, k: int, uri: str, names: list[str] | None) -> Search:
    """A LanceDB table, written unless it is there; every query reads it from where it lies.

    Raises:
        BadInput: the table is of other codes, or cannot be opened, written or searched.
    """
    lancedb, arrow = (optional_package(module, "lancedb", "search") for module in ("lancedb", "pyarrow"))
    said = {b"codes": database.fingerprint.encode(), b"bits": str(database.bits).encode()}
    with using(uri):
        store = lancedb.connect(uri)
        try:
            table = store.open_table(TABLE)
        except ValueError:  # there is none, or a kill left a part of one
            table = store.create_table(TABLE, *lance_rows(arrow, database, names, said))
        if not said.items() <= (table.schema.metadata or {}).items():
            raise BadInput(f"{uri}: its table '{TABLE}' holds other codes; name another place")

    def some(queries: np.ndarray, n: int) -> Found:
        found = []
        for query in queries:
            with using(uri):
                ask = table.search(query.tolist(), vector_column_name="code").distance_type("hamming")
                answer = ask.select(["video", "_distance"]).limit(n).to_arrow()
            found.append([answer[column].to_numpy() for column in ("video", "_distance")])
        return tuple(np.stack(each) for each in zip(*found, strict=True))

    return lambda queries: with_ties(some, queries, k, len(database))


@contextlib.contextmanager
def using(uri: str) -> Iterator[None]:
    """Use a LanceDB table here.

    Raises:
        BadInput: whatever LanceDB raises, its first line.
    """
    try:
        yield
    except BadInput:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"{uri}: cannot be used: {str(error).splitlines()[0]}") from None


def lance_rows(arrow: ModuleType, database: CodeFile, names: list[str] | None, said: dict) -> tuple:
    """The rows of the table, in batches, and their schema; names and classes where there are any."""
    n_bytes = database.codes.shape[1]
    columns = [("video", arrow.int64()), ("code", arrow.list_(arrow.uint8(), n_bytes))]
    columns += [("name", arrow.string())] if names else []
    columns += [("labels", arrow.list_(arrow.int32()))] if database.labels is not None else []
    schema = arrow.schema(columns, metadata=said)

    def batches() -> Iterator[object]:
        for start in progress(range(0, len(database), ROWS), "writing the table"):
            rows = slice(start, min(start + ROWS, len(database)))
            codes = arrow.array(database.codes[rows].reshape(-1))
            content = [arrow.array(np.arange(rows.start, rows.stop)),
                       arrow.FixedSizeListArray.from_arrays(codes, n_bytes)]  # fmt: skip
            content += [arrow.array(names[rows])] if names else []
            if database.labels is not None:
                found = [np.flatnonzero(label).tolist() for label in database.labels[rows]]
                content += [arrow.array(found, arrow.list_(arrow.int32()))]
            yield arrow.RecordBatch.from_arrays(content, schema=schema)

    return batches(), schema


def faiss() -> ModuleType:
    """FAISS."""
    return optional_package("faiss", "faiss-cpu", "search")


INDEXES = {"exact": exact, "hnsw": graph, "ivf": lists, "lance": lance}
