"""The search: FAISS, LanceDB and the package's own ranking give the same neighbours."""

import csv
import importlib
import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from synthetic import ROOT, json_lines, need, write_codes

from formats.bits import unpack
from metrics import hamming_distance
from tools import indexes
from tools.search import main


@pytest.fixture
def files(tmp_path):
    """Codes of few bits, so that ties abound, one in ten entries 0."""

    def make(bits=16, n=300, seed=0, **options):
        rng = np.random.default_rng(seed)
        values = np.array([-1, 1, 0], np.int8)
        codes = [rng.choice(values, (count, bits), p=[0.45, 0.45, 0.1]) for count in (n, 9)]
        paths = [write_codes(tmp_path / f"{name}.h5", code, **options)
                 for name, code in zip(("database", "queries"), codes, strict=True)]  # fmt: skip
        return [np.where(code < 0, -1, 1) for code in codes], paths

    return make


def search(capsys, *arguments):
    status = main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return status, list(csv.DictReader(out.split("\n"))), err


def by_sorting(database, queries, k):
    """The rows of the CSV from a stable sort of all distances."""
    distances = hamming_distance(queries, database).numpy()
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return [
        {"query": str(q), "rank": str(rank), "video": str(video), "distance": str(int(distances[q, video]))}
        for q, row in enumerate(order)
        for rank, video in enumerate(row, 1)
    ]


@pytest.mark.parametrize("engine", ["own", "faiss", "lance"])
@pytest.mark.parametrize("bits", [16, 20, 64, 100, 128])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_exact_engines_equal_a_stable_sort(files, capsys, monkeypatch, tmp_path, engine, bits, k):
    (database, queries), paths = files(bits)
    options = ()
    if engine == "own":
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    else:
        need({"faiss": "faiss", "lance": "lancedb"}[engine])
    if engine == "lance":
        options = ("--index", "lance", "--uri", tmp_path / "table")
    status, rows, err = search(capsys, *paths, "--k", k, *options)
    assert (status, err) == (0, "")
    assert rows == by_sorting(database, queries, k)


@pytest.mark.parametrize("engine", ["faiss", "lance"])
def test_where_all_tie_the_lowest_numbers_come_first(capsys, tmp_path, engine):
    need({"faiss": "faiss", "lance": "lancedb"}[engine])
    codes = np.ones((5000, 16), np.int8)
    codes[0, 0] = -1
    paths = [write_codes(tmp_path / "database.h5", codes), write_codes(tmp_path / "queries.h5", codes[1:3])]
    options = ("--index", "lance", "--uri", tmp_path / "table") if engine == "lance" else ()
    rows = search(capsys, *paths, "--k", 3, *options)[1]
    assert [row["video"] for row in rows] == ["1", "2", "3"] * 2


def test_all_of_a_database_with_fewer_videos_than_the_default(capsys, tmp_path):
    codes = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (7, 16))
    path = write_codes(tmp_path / "database.h5", codes)
    status, rows, err = search(capsys, path, path)
    assert (status, err) == (0, "")
    assert rows == by_sorting(codes, codes, 7)


@pytest.mark.parametrize("k", [2, 300])
def test_answers_at_once_are_bounded(files, monkeypatch, capsys, k):
    """Where all tie, or k is large, not all queries are answered at once."""
    monkeypatch.setattr(indexes, "ANSWERS", 900)
    monkeypatch.setattr("tools.search.ANSWERS", 900)
    asked = []

    def engine(database, k):
        def some(queries, n):
            asked.append(len(queries) * n)
            videos = np.tile(np.arange(300)[-n:], (len(queries), 1))  # the wrong ones until all are asked for
            return videos, np.zeros_like(videos)

        return lambda queries: indexes.with_ties(some, queries, k, 300)

    monkeypatch.setitem(indexes.INDEXES, "exact", engine)
    _, paths = files()
    rows = search(capsys, *paths, "--k", k)[1]
    assert [row["video"] for row in rows] == list(map(str, range(k))) * 9
    assert max(asked) == 900


def test_lists_of_few_videos(files, capsys):
    need("faiss")
    (database, queries), paths = files(16, n=10)
    status, rows, _ = search(capsys, *paths, "--index", "ivf", "--k", 10)
    assert (status, rows) == (0, by_sorting(database, queries, 10))


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_approximate_indexes_are_kept_and_used_again(files, capsys, index):
    need("faiss")
    (database, queries), paths = files(64, n=2000)
    status, rows, err = search(capsys, *paths, "--index", index)
    assert status == 0
    assert "built; the next search uses it again" in err
    expected = by_sorting(database, queries, 10)
    reach = {row["query"]: int(row["distance"]) for row in expected}  # of the tenth neighbour
    assert np.mean([int(row["distance"]) <= reach[row["query"]] for row in rows]) > 0.7
    for row in rows:  # what it finds, it finds at the right distance, in order
        pair = queries[int(row["query"])], database[int(row["video"])]
        assert int(row["distance"]) == (pair[0] != pair[1]).sum()
    status, again, err = search(capsys, *paths, "--index", index)
    assert (again, err) == (rows, "")
    (kept,) = paths[0].parent.glob(f"database.{index}-*.faiss")
    os.truncate(kept, kept.stat().st_size // 2)
    status, _, err = search(capsys, *paths, "--index", index)
    assert status == 2
    assert f"{kept}: a damaged index; delete it, and it is built anew" in err


def test_an_index_is_of_its_codes(files, capsys):
    need("faiss")
    _, paths = files(64)
    search(capsys, *paths, "--index", "ivf")
    files(64, seed=1)  # another database under the same name
    assert "built" in search(capsys, *paths, "--index", "ivf")[2]


class TestCsv:
    def test_labels_and_names(self, capsys, tmp_path):
        codes = np.where(np.eye(4, 8), 1, -1)
        labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]], np.uint8)
        path = write_codes(tmp_path / "x.h5", codes, labels)
        (tmp_path / "names.txt").write_text("a dog\na,b\nç\nd\n", encoding="utf-8")
        options = ("--k", 1, "--video-names", tmp_path / "names.txt", "--out", tmp_path / "out.csv")
        status, _, err = search(capsys, path, path, *options)
        assert (status, err) == (0, "")
        assert (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines() == [
            "query,rank,video,distance,name,query_labels,video_labels",
            "0,1,0,0,a dog,0;2,0;2",
            '1,1,1,0,"a,b",1,1',
            "2,1,2,0,ç,,",
            "3,1,3,0,d,0;1;2,0;1;2",
        ]

    def test_names_beside_the_features(self, capsys, tmp_path):
        """Of the database in two parts, of the queries in one; a file of the user's in place of either."""
        codes = np.where(np.eye(4, 8), 1, -1)
        labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]], np.uint8)
        parts = {
            "a_feats": ("clip 0",),
            "b": ("clip 1", "clip, 2", "clip 3"),
            "query_feats": ("who", "whose"),
        }
        for part, names in parts.items():
            (tmp_path / f"{part.removesuffix('_feats')}_names.txt").write_text("\n".join(names))
        sources = [str(tmp_path / f"{part}.h5") for part in parts]
        database = write_codes(tmp_path / "x.h5", codes, labels, sources=json.dumps(sources[:2]))
        queries = write_codes(tmp_path / "y.h5", codes[2:], labels[2:], sources=json.dumps(sources[2:]))
        assert main([str(database), str(queries), "--k", "1"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "query,rank,video,distance,name,query_labels,video_labels,query_name",
            '0,1,2,0,"clip, 2",,,who',
            "1,1,3,0,clip 3,0;1;2,0;1;2,whose",
        ]
        (tmp_path / "own.txt").write_text("one\ntwo\nthree\nfour\n")
        rows = search(capsys, database, queries, "--k", 1, "--video-names", tmp_path / "own.txt")[1]
        assert [(row["name"], row["query_name"]) for row in rows] == [("three", "who"), ("four", "whose")]
        (tmp_path / "own.txt").write_text("me\nmyself\n")
        rows = search(capsys, database, queries, "--k", 1, "--query-names", tmp_path / "own.txt")[1]
        assert [(row["name"], row["query_name"]) for row in rows] == [("clip, 2", "me"), ("clip 3", "myself")]
        (tmp_path / "query_names.txt").write_text("who\n")
        status, _, err = search(capsys, database, queries)
        assert (status, err) == (
            2, f"error: {tmp_path}/query_names.txt: expected 2 names, one a line, found 1\n")  # fmt: skip

    def test_names_of_another_editor(self, capsys, tmp_path):
        """A byte order mark, Windows' line ends, no last one, and a separator that is no line end."""
        path = write_codes(tmp_path / "x.h5", np.where(np.eye(2, 8), 1, -1))
        (tmp_path / "names.txt").write_bytes("\ufeffone\u2028day\r\ntwo".encode())
        rows = search(capsys, path, path, "--k", 1, "--video-names", tmp_path / "names.txt")[1]
        assert [row["name"] for row in rows] == ["one\u2028day", "two"]

    def test_a_reader_that_has_enough(self, files):
        """As ``| head -1``: not an error."""
        _, paths = files()
        command = [sys.executable, "-m", "tools.search", *map(str, paths)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            assert (process.stderr.read(), process.wait()) == (b"", 0)

    def test_entries_that_were_0_are_counted(self, files, capsys, tmp_path):
        _, paths = files(16)
        main([*map(str, paths), "--out", str(tmp_path / "out.csv")])
        assert "code entries were 0 (frames in a tie) and count as +1" in capsys.readouterr().out


class TestRefusals:
    def refused(self, capsys, *arguments):
        status, rows, err = search(capsys, *arguments)
        assert (status, rows, err.count("\n")) == (2, [], 1)
        return err

    def test_other_bits(self, files, capsys, tmp_path):
        _, (database, _) = files(16)
        other = write_codes(tmp_path / "other.h5", np.ones((3, 32), np.int8))
        assert "other.h5: codes of 32 bits, those of" in self.refused(capsys, database, other)

    def test_another_network(self, files, capsys, tmp_path):
        _, (database, _) = files(16)
        other = write_codes(tmp_path / "other.h5", np.ones((3, 16), np.int8), digest="e" * 16)
        err = self.refused(capsys, database, other)
        assert err.endswith(f"another network than those of {database}; --force searches all the same\n")
        assert search(capsys, database, other, "--force")[0] == 0

    @pytest.mark.parametrize("k", [0, 301])
    def test_k(self, files, capsys, k):
        _, paths = files(16)
        assert "--k: expected 1 to 300" in self.refused(capsys, *paths, "--k", k)

    def test_names(self, files, capsys, tmp_path):
        _, paths = files(16)
        (tmp_path / "names.txt").write_text("a\nb\n")
        err = self.refused(capsys, *paths, "--video-names", tmp_path / "names.txt")
        assert "names.txt: expected 300 names, one a line, found 2" in err
        err = self.refused(capsys, *paths, "--video-names", tmp_path / "none.txt")
        assert "none.txt: cannot be read: No such file or directory" in err

    def test_options(self, files, capsys):
        _, paths = files(16)
        assert "--uri: expected with --index lance" in self.refused(capsys, *paths, "--uri", "x")
        assert "--uri: expected with --index lance" in self.refused(capsys, *paths, "--index", "lance")
        assert "invalid choice: 'x'" in self.refused(capsys, *paths, "--index", "x")

    @pytest.mark.parametrize("index", ["hnsw", "lance"])
    def test_a_missing_package(self, files, capsys, monkeypatch, tmp_path, index):
        def missing(name):
            raise ImportError(name)

        _, paths = files(16)
        monkeypatch.setattr("formats.files.importlib.import_module", missing)
        options = ("--uri", tmp_path / "table") if index == "lance" else ()
        err = self.refused(capsys, *paths, "--index", index, *options)
        assert "pip install -r requirements-search.txt" in err

    def test_a_table_of_other_codes(self, files, capsys, tmp_path):
        need("lancedb")
        options = ("--index", "lance", "--uri", tmp_path / "table")
        _, paths = files(16)
        assert search(capsys, *paths, *options)[0] == 0
        _, paths = files(16, seed=1)
        assert "its table 'codes' holds other codes; name another place" in self.refused(
            capsys, *paths, *options
        )

    def test_a_damaged_table(self, files, capsys, tmp_path):
        need("lancedb")
        _, paths = files(16)
        options = ("--index", "lance", "--uri", tmp_path / "table")
        rows = search(capsys, *paths, *options)[1]
        shutil.rmtree(tmp_path / "table/codes.lance/_versions")  # as if killed while it was written
        assert search(capsys, *paths, *options)[1] == rows
        shutil.rmtree(tmp_path / "table/codes.lance/data")
        err = self.refused(capsys, *paths, *options, "--out", tmp_path / "out.csv")
        assert f"{tmp_path}/table: cannot be used: lance error" in err

    def test_a_full_disk_keeps_the_previous_file(self, files, capsys, tmp_path, monkeypatch):
        _, paths = files(16)
        out = tmp_path / "out.csv"
        out.write_text("previous")

        class Full:
            def writerows(self, rows):
                raise OSError(28, "No space left on device")

        monkeypatch.setattr("tools.search.csv.writer", lambda *_, **__: Full())
        assert "out.csv: cannot be written: No space left" in self.refused(capsys, *paths, "--out", out)
        assert out.read_text() == "previous"


def test_from_training_to_precision(start, dataset, capsys, tmp_path):
    """Precision@5 of the CSV is the table's, with an odd number of frames: no code entry is 0."""
    for name in ("train", "test", "query"):
        with h5py.File(dataset.folder / f"{name}.h5", "w") as file:
            file["feats"] = dataset.features[name][:, :5]
    dataset.change(max_frames=5)
    for stage in ("pretrain", "test", "tools.encode"):
        assert start("--stage", stage)[0] == 0
    rows = search(capsys, "code/3_16_test.h5", "code/3_16_query.h5", "--k", 5)[1]
    right = [row["query_labels"] == row["video_labels"] for row in rows]
    assert np.mean(right) == pytest.approx(json_lines("log/2.jsonl")[-2]["precision"]["5"])


def test_codes_of_a_file_unpack(files):
    (database, _), (path, _) = files(20)
    with h5py.File(path) as file:
        assert np.array_equal(unpack(file["codes"][()], 20), database)
