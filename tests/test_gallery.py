"""The gallery: the ranking of the test, the right names and pictures, and a page that a browser shows."""

import base64
import json
import os
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic import write_codes, write_log

from metrics import evaluate, hamming_distance
from tools.gallery import Answers, main, rank
from tools.tested import open_asked, open_splits

JPEG = base64.b64decode(  # 8 x 8, grey
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP////////////////////////////////////////////////////////////////////////"
    "//////////////wAALCAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAf/EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AH//Z"
)
TITLE = re.compile(
    "<h3>(.*?): ([0-9]+) of [0-9]+ right .the database has (.*?)., AP@[0-9]+ (.*?) of at most .*?</h3>"
)
CARD = re.compile('<li class="card (.*?)">(<img [^>]*>)?<b>(.*?)</b> (.*?)</li>')


class Result:
    """A folder with the result of a test: few bits, so that ties abound, several classes a video."""

    def __init__(self, folder, n=(40, 12), bits=6, n_classes=5, ks=(5, 20), exclude_self=False):
        rng = np.random.default_rng(0)
        (folder / "result").mkdir()
        self.folder, self.exclude_self = folder, exclude_self
        self.codes = [rng.choice(np.array([-1, 1], np.int8), (count, bits)) for count in n]
        self.labels = [(rng.random((count, n_classes)) < 0.3).astype(np.uint8) for count in n]
        self.files = {"database": "result/1_test.h5", "query": "result/1_query.h5"}
        if len(n) == 1:  # the database asks
            self.codes, self.labels = self.codes * 2, self.labels * 2
            self.files["query"] = self.files["database"]
        self.ks = ks
        self.write()

    def write(self, **values):
        for name, codes, labels in zip(self.files.values(), self.codes, self.labels, strict=True):
            split = name.removeprefix("result/1_").removesuffix(".h5")
            sources = json.dumps([f"features/{split}_feats.h5"])
            write_codes(self.folder / name, codes, labels, sources=sources)
        n = len(self.codes[0])
        order = np.argsort(self.distances(), axis=1, kind="stable")[:, : n - self.exclude_self]
        ap = [[average_precision(self.right(q, row[:cut])) for q, row in enumerate(order)] for cut in self.ks]
        self.event = {
            "event": "result", "stage": "test", "system": "WSCH", "dataset": "tiny", "protocol": "query",
            "bits": self.codes[0].shape[1], "origin": "train on tiny, seed 1", "weights": "weight/1_6.pth",
            "exclude_self": self.exclude_self,
            "mAP": {str(cut): sum(each) / len(each) for cut, each in zip(self.ks, ap, strict=True)},
            "chance": {"5": 0.125}, "ceiling": {"5": 0.875}, "codes": self.files,
        } | values  # fmt: skip
        write_log(self.folder / "log/1.jsonl", {"event": "start", "stage": "test"}, self.event)

    def distances(self):
        distances = hamming_distance(self.codes[1], self.codes[0]).numpy()
        if self.exclude_self:
            np.fill_diagonal(distances, np.inf)
        return distances

    def right(self, query, videos):
        return [bool((self.labels[1][query] & self.labels[0][video]).any()) for video in videos]


def average_precision(right):
    """From the definition."""
    return sum(sum(right[: i + 1]) / (i + 1) for i in range(len(right)) if right[i]) / len(right)


@pytest.fixture
def result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda **options: Result(tmp_path, **options)


@pytest.fixture
def gallery(tmp_path, capsys):
    def run(*options, codes=("log/1.jsonl",)):
        capsys.readouterr()
        out = tmp_path / "gallery.html"
        out.unlink(missing_ok=True)
        status = main([*codes, "--out", str(out), *map(str, options)])
        return status, out.read_text(encoding="utf-8") if out.exists() else "", *capsys.readouterr()

    return run


def rows_of(page):
    """Of every row its title's parts, and of every card kind, picture, mark and texts."""
    found = []
    for part in page.split("<h3>")[1:]:
        title = TITLE.match("<h3>" + part).groups()
        cards = []
        for kind, picture, mark, rest in CARD.findall(part):
            texts = [unescape(each) for each in re.findall("<span[^>]*>(.*?)</span>", rest)]
            cards.append((kind, picture, unescape(mark), texts))
        found.append((title, cards))
    return found


class TestRanking:
    @pytest.mark.parametrize("k", [3, 10, 40])
    def test_every_query_by_a_stable_sort(self, result, gallery, k):
        made = result()
        status, page, out, err = gallery("--pick", "random", "--queries", 12, "--k", k)
        assert (status, err) == (0, "")
        rows, distances = rows_of(page), made.distances()
        assert len(rows) == 12
        for query, ((_, n_right, relevant, ap), (asked, *cards)) in enumerate(rows):
            order = np.argsort(distances[query], kind="stable")[:k]
            right = made.right(query, order)
            assert (asked[0], asked[3][-1]) == ("query", f"video {query}")
            assert [card[3][-1] for card in cards] == [f"video {video}" for video in order]
            assert [card[3][0] for card in cards] == [
                f"{place}. {distances[query, video]:g} bits" for place, video in enumerate(order, 1)
            ]
            assert [card[0] for card in cards] == [{True: "right", False: "wrong"}[each] for each in right]
            assert [card[2] for card in cards] == [
                {True: "✓ right", False: "✗ wrong"}[each] for each in right
            ]
            assert int(n_right) == sum(right)
            assert relevant == str(sum(made.right(query, range(40))) or "none")
            assert ap == f"{average_precision(right):.3f}"

    @pytest.mark.parametrize("options", [{}, {"n": (40,)}, {"n": (40,), "exclude_self": True}])
    def test_average_precision_is_that_of_the_metrics(self, result, options):
        made = result(**options)
        database, query = open_splits(open_asked(["log/1.jsonl"]), None, None, None)
        answers = rank(database, query, 20, made.exclude_self)
        for k in made.ks:
            found = answers.average_precision(k).mean()
            assert abs(found - made.event["mAP"][str(k)]) < 1e-12
            if not made.exclude_self:
                labels = (database.file.labels, query.file.labels)
                same = evaluate(made.codes[1], made.codes[0], *labels[::-1], [k]).map[k]
                assert abs(found - same) < 1e-12

    def test_average_precision_by_hand(self):
        right = np.array([[True, False, True, False]])
        answers = Answers(np.zeros((1, 4), int), np.zeros((1, 4)), right)
        assert answers.average_precision(4).tolist() == [(1 + 2 / 3) / 4]
        assert answers.average_precision(2).tolist() == [1 / 2]

    def test_itself_left_out_with_many_ties(self, result, gallery):
        made = result(n=(40,), bits=1, exclude_self=True)
        for k in (5, 39):
            status, page, _, err = gallery("--pick", "random", "--queries", 40, "--k", k)
            assert (status, err) == (0, "")
            distances = made.distances()
            for query, (title, (_, *cards)) in enumerate(rows_of(page)):
                others = [video for video in range(40) if video != query]
                assert title[2] == str(sum(made.right(query, others)) or "none")
                order = np.argsort(distances[query], kind="stable")[:k]
                assert [card[3][-1] for card in cards] == [f"video {video}" for video in order]

    def test_the_query_itself_is_marked(self, result, gallery):
        made = result(n=(40,), bits=40)
        made.labels[0][:, 0] = 1
        made.write()
        page = gallery("--pick", "random", "--queries", 3, "--k", 2)[1]
        for _, (asked, first, second) in rows_of(page):
            assert (first[2], first[3][-1]) == ("✓ right (the query itself)", asked[3][-1])
            assert second[2] == "✓ right"
        assert "every one of them is a query" in page


class TestPicks:
    def test_best_and_worst_by_a_sort(self, result, gallery):
        made = result(n=(40, 100))
        order = np.argsort(made.distances(), axis=1, kind="stable")[:, :10]
        ap = [average_precision(made.right(query, row)) for query, row in enumerate(order)]
        rows = rows_of(gallery("--pick", "worst,best", "--queries", 40)[1])
        worst = sorted(range(100), key=lambda query: ap[query])  # stable: ties by number
        best = sorted(range(100), key=lambda query: -ap[query])
        asked = [cards[0][3][-1] for _, cards in rows]
        assert asked == [f"video {query}" for query in worst[:40] + best[:40]]

    def test_random_ones_are_the_seeds(self, result, gallery):
        result()
        pages = [gallery("--pick", "random", "--queries", 3, "--seed", seed)[1] for seed in (0, 0, 1)]
        assert pages[0] == pages[1]
        asked = [[cards[0][3][-1] for _, cards in rows_of(page)] for page in pages]
        assert asked[0] != asked[2]

    def test_three_kinds_by_default(self, result, gallery):
        result(n=(40, 13))
        page = gallery()[1]
        titles = re.findall("<h2>(.*?)</h2>", page)
        assert titles == ["Random queries", "Best queries", "Worst queries"]
        assert len(rows_of(page)) == 12

    def test_of_few_queries_each_is_shown_once(self, result, gallery):
        result()
        _, page, out, _ = gallery()
        assert re.findall("<h2>(.*?)</h2>", page) == ["All queries, best first"]
        rows = rows_of(page)
        assert sorted(cards[0][3][-1] for _, cards in rows) == sorted(f"video {query}" for query in range(12))
        assert ": 12 rows of 11 pictures, 132 of these without" in out

    def test_the_best_that_a_query_could_reach(self, result, gallery):
        """Of r relevant videos min(r, K) / K; its mean is the ceiling, that of a random order the chance."""
        made = result(n=(40, 13))
        page = gallery("--k", 16, "--queries", 13, "--pick", "worst")[1]
        relevant = (made.labels[1].astype(int) @ made.labels[0].T > 0).sum(1)  # (Q,)
        said = re.findall("the database has (.*?).,? AP@16 .*? of at most (.*?)</h3>", page)
        assert sorted(best for _, best in said) == sorted(f"{min(r, 16) / 16:.3f}" for r in relevant)
        chance = [sum(r / 40 * (1 + (i - 1) * (r - 1) / 39) / i for i in range(1, 17)) / 16 for r in relevant]
        cells = [re.findall("<t[hd]>(.*?)</t[hd]>", line) for line in re.findall("<tr>(.*?)</tr>", page)]
        assert [row[2] for row in cells[2:]] == [f"{np.minimum(relevant, 16).mean() / 16:.3f}",
                                                 f"{sum(chance) / len(chance):.3f}"]  # fmt: skip

    def test_head(self, result, gallery):
        made = result()
        page = gallery()[1]
        ap = made.event["mAP"]
        cells = [re.findall("<t[hd]>(.*?)</t[hd]>", line) for line in re.findall("<tr>(.*?)</tr>", page)]
        assert cells[0] == ["", "@5", "@10", "@20"]
        assert cells[1][::2] == ["mAP@K", cells[1][2]]
        assert cells[1][1::2] == [f"{ap['5']:.3f}", f"{ap['20']:.3f}"]
        assert [row[:2] + row[3:] for row in cells[2:]] == [
            ["ceiling", "0.875", "-"],
            ["chance", "0.125", "-"],
        ]
        assert "<h1>Nearest videos: WSCH, tiny, 6 bits</h1>" in page
        assert "train on tiny, seed 1; 40 videos in the database, 12 queries." in page


class TestWithoutATest:
    """Two files of codes, no log."""

    def bare(self, made):
        """Its files, without labels."""
        for name, codes in zip(made.files.values(), made.codes, strict=True):
            said = {"dataset": "train on it, seed 1", "sources": '["features/x_feats.h5"]'}
            write_codes(made.folder / name, codes, **said)
        return tuple(made.files.values())

    def test_with_labels_it_shows_what_the_log_shows(self, result, gallery):
        made = result()
        shown = gallery()[1]
        (made.folder / "log/1.jsonl").unlink()
        status, page, _, err = gallery(codes=tuple(made.files.values()))
        assert (status, err) == (0, "")
        assert rows_of(page) == rows_of(shown) != []
        order = np.argsort(made.distances(), axis=1, kind="stable")[:, :10]
        ap = [average_precision(made.right(query, row)) for query, row in enumerate(order)]
        assert re.findall("<t[hd]>(.*?)</t[hd]>", page)[:4] == [
            "",
            "@10",
            "mAP@K",
            f"{sum(ap) / len(ap):.3f}",
        ]
        assert "<p>a network that says nothing of its training; 40 videos in the database" in page
        assert "12 queries. Codes: result/1_test.h5 and result/1_query.h5." in page
        assert "<h1>Nearest videos: WSCH, 6 bits</h1>" in page

    @pytest.mark.parametrize("lacking", ["both", "query"])
    def test_without_labels(self, result, gallery, lacking):
        made = result()
        if lacking == "both":
            self.bare(made)
        else:
            write_codes(made.folder / made.files["query"], made.codes[1])
        status, page, _, err = gallery("--queries", 12, "--k", 40, codes=tuple(made.files.values()))
        assert (status, err) == (0, "")
        assert re.findall("<h2>(.*?)</h2>", page) == ["Random queries"]
        assert re.findall("<h3>(.*?)</h3>", page) == [f"video {query}" for query in range(12)]
        distances, cards = made.distances(), CARD.findall(page)
        order = np.argsort(distances, axis=1, kind="stable")
        places = [f"{rank}. {distances[query, video]:g} bits" for query, row in enumerate(order)
                  for rank, video in enumerate(row, 1)]  # fmt: skip
        assert [mark for kind, _, mark, _ in cards if kind == "found"] == places
        names = [f"video {video}" for video in order.ravel()]
        found = [re.findall("<span[^>]*>(.*?)</span>", rest) for kind, _, _, rest in cards if kind == "found"]
        assert found == [[name] for name in names]
        lacks = "result/1_test.h5 and result/1_query.h5" if lacking == "both" else "result/1_query.h5"
        assert f"<li>No labels in {lacks}, so no marks and no mAP.</li>" in page
        for word in ("right", "wrong", "AP@", "class ", "<table>", "None"):
            assert word not in page.partition("</style>")[2].replace('class="', ""), word

    def test_one_file_asks_itself(self, result, gallery):
        made = result(n=(40,), bits=2, exclude_self=True)
        files = self.bare(made)
        for k in (5, 39):
            page = gallery("--queries", 40, "--k", k, codes=(files[0], f"{made.folder}/{files[0]}"))[1]
            shown = re.findall('<span class="faint">(.*?)</span>', page)
            order = np.argsort(made.distances(), axis=1, kind="stable")[:, :k]
            assert shown == [f"video {each}" for query, row in enumerate(order) for each in (query, *row)]
        assert "<p>train on it, seed 1; 40 videos in the database, every one of them is a query, and" in page
        assert "is left out of its own answer. Codes: result/1_test.h5.</p>" in page
        assert page.count("No labels in ") == 1

    def test_names_and_thumbnails(self, result, gallery):
        made = result(n=(7,))
        files = self.bare(made)
        TestVideos().names(made, "x", [f"clip{i}.mp4" for i in range(7)])
        TestVideos().thumbnail(made, "clip3.mp4")
        page = gallery("--queries", 7, codes=files)[1]
        assert re.findall("<h3>(.*?)</h3>", page) == [f"clip{i}.mp4" for i in range(7)]
        assert page.count("<img") == 7

    def test_refusals(self, result, gallery):
        made = result()
        files = self.bare(made)
        for options, codes, said in (
            (("--pick", "random,worst"), files, "--pick: 'worst' needs labels, which tell right from wrong"),
            (("--pick", ""), files, "--pick: expected some of random,best,worst, found ''"),
            (
                (),
                files[:1],
                "expected a log, or two files of codes (database, queries), found result/1_test.h5",
            ),
            ((), (*files, "x.h5"), "found result/1_test.h5 result/1_query.h5 x.h5"),
            ((), (files[0], "none.h5"), "none.h5: no such file of codes; stage tools.encode makes one"),
            ((), ("log/1.jsonl", files[0]), "log/1.jsonl: "),
            (("--k", 40), (files[0], files[0]), "--k: expected 1 to 39, the videos of result/1_test.h5"),
        ):
            status, page, out, err = gallery(*options, codes=codes)
            assert (status, page, out, err.count("\n")) == (2, "", "", 1)
            assert said in err


NASTY = "<script>alert(\"x\")</script> & 'ü'/日本.mp4"


class TestVideos:
    def names(self, made, split, names, folder="features"):
        path = made.folder / folder / f"{split}_names.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(names) + "\n", encoding="utf-8")
        return path

    def thumbnail(self, made, name, folder="features/thumbnails", content=JPEG):
        path = made.folder / folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def test_beside_the_features(self, result, gallery):
        made = result()
        database = self.names(made, "test", [f"test/{i}.mp4" for i in range(39)] + [NASTY])
        self.names(made, "query", [f"query/{i}.mp4" for i in range(12)])
        (made.folder / "features/classes.txt").write_text("zero\n<b>one\ntwo\nthree\nfour\n")
        for name in ("query/0.mp4", "test/3.mp4", NASTY):
            self.thumbnail(made, name)
        status, page, out, err = gallery("--pick", "random", "--queries", 12, "--k", 40)
        assert (status, err) == (0, "")
        names = database.read_text(encoding="utf-8").splitlines()
        for query, (_, (asked, *cards)) in enumerate(rows_of(page)):
            assert asked[3][-1] == f"query/{query}.mp4"
            assert bool(asked[1]) == (query == 0)
            assert sorted(card[3][-1] for card in cards) == sorted(names)
            assert {card[3][-1] for card in cards if card[1]} == {"test/3.mp4", NASTY}
            classes = ["zero", "<b>one", "two", "three", "four"]
            for _, _, _, (_, labels, name) in cards:
                label = made.labels[0][names.index(name)]
                assert labels == (", ".join(classes[c] for c in np.flatnonzero(label)) or "no class")
        assert "<script" not in page
        assert "<b>one" not in page
        assert page.count(base64.b64encode(JPEG).decode()) == 12 * 2 + 1
        assert out.startswith(
            f"{made.folder}/gallery.html: 12 rows of 41 pictures, 467 of these without a thumbnail"
        )

    def test_by_options(self, result, gallery):
        made = result()
        names = [self.names(made, split, [f"{split}{i}" for i in range(n)], "other")
                 for split, n in (("test", 40), ("query", 12))]  # fmt: skip
        for name in ("query1", "test2"):
            self.thumbnail(made, name, "pictures")
        options = ("--database-names", names[0], "--query-names", names[1], "--thumbnails", "pictures")
        page = gallery(*options, "--queries", 12, "--k", 40, "--pick", "best")[1]
        pictured = {card[3][-1] for _, cards in rows_of(page) for card in cards if card[1]}
        assert pictured == {"query1", "test2"}

    def test_a_split_of_several_files(self, result, gallery):
        made = result()
        sources = json.dumps([f"features/part{i}.h5" for i in (1, 2)])
        write_codes(made.folder / made.files["database"], made.codes[0], made.labels[0], sources=sources)
        for part, rows in (("part1", range(15)), ("part2", range(15, 40))):
            self.names(made, part, [f"clip {i}" for i in rows])
        cards = rows_of(gallery("--queries", 1, "--pick", "best", "--k", 40)[1])[0][1]
        order = np.argsort(made.distances(), axis=1, kind="stable")
        query = int(cards[0][3][-1].removeprefix("video "))
        assert [card[3][-1] for card in cards[1:]] == [f"clip {video}" for video in order[query]]

    def test_names_that_lead_out_of_the_folder(self, result, gallery, tmp_path):
        """Nor through a link."""
        made = result()
        (tmp_path / "secret.jpg").write_bytes(JPEG)
        (tmp_path / "features/thumbnails/a").mkdir(parents=True)
        (tmp_path / "features/thumbnails/link.jpg").symlink_to(tmp_path / "secret.jpg")
        out = ["../../secret", f"{tmp_path}/secret", "a/../../../secret", "link", "x" * 300, "a\0b"]
        self.names(made, "test", out + [f"{i}" for i in range(34)])
        status, page, _, err = gallery("--k", 40, "--queries", 12)
        assert (status, err) == (0, "")
        assert "../../secret" in page
        assert "<img" not in page

    def test_what_is_no_jpeg_is_not_shown(self, result, gallery):
        made = result()
        self.names(made, "test", [f"{i}" for i in range(40)])
        self.thumbnail(made, "0", content=b"<svg onload='alert(1)'>")
        assert "<img" not in gallery("--k", 40)[1]


def test_a_database_of_fewer_videos_than_are_shown_by_default(result, gallery):
    result(n=(7, 12), ks=(5,))
    status, page, _, err = gallery()
    assert (status, err) == (0, "")
    assert "its 7 nearest videos" in page


class TestRefusals:
    def refused(self, gallery, *options):
        status, page, out, err = gallery(*options)
        assert (status, page, out, err.count("\n")) == (2, "", "", 1)
        return err

    def test_names(self, result, gallery):
        made = result()
        (made.folder / "features").mkdir()
        path = made.folder / "features/query_names.txt"
        path.write_text("a\nb\n")
        assert "features/query_names.txt: expected 12 names, one a line, found 2" in self.refused(gallery)
        path.unlink()
        err = self.refused(gallery, "--database-names", "none.txt")
        assert "none.txt: cannot be read: No such file or directory" in err
        (made.folder / "features/classes.txt").write_text("a\nb\n")
        assert "features/classes.txt: expected 5 classes, one a line, found 2" in self.refused(gallery)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--k", 41), "--k: expected 1 to 40, the videos of result/1_test.h5, found 41"),
            (("--k", 0), "--k: expected 1 to 40"),
            (("--queries", 0), "--queries: expected 1 or more, found 0"),
            (("--seed", -1), "--seed: expected 0 or more, found -1"),
            (("--pick", "best,x"), "--pick: expected some of random,best,worst, found 'x'"),
        ],
    )
    def test_options(self, result, gallery, options, said):
        result()
        assert said in self.refused(gallery, *options)

    def test_no_codes(self, result, gallery):
        made = result()
        made.write(bits=None, codes=None)
        assert "log/1.jsonl: real values, no codes (--method lsh, pca or itq)" in self.refused(gallery)
        made.write(codes=None)
        missing = "no 'codes', as before version 1.2; test again, with --weight_path"
        assert f"log/1.jsonl: {missing}" in self.refused(gallery)
        made.write(codes={"database": "result/1_test.h5"})
        assert "log/1.jsonl: damaged: 'codes' of an event 'result'" in self.refused(gallery)

    def test_codes_that_are_not_there_or_not_its_own(self, result, gallery):
        made = result()
        made.write(mAP={"5": 0.5, "20": 0.5})
        err = self.refused(gallery)
        assert re.search("result/1_test.h5: not the codes of this test, mAP@5 of these .* says 0.500000", err)
        made.write(mAP={"5": float("nan")})
        assert "not the codes of this test" in self.refused(gallery)
        (made.folder / "result/1_query.h5").unlink()
        assert "result/1_query.h5: no such file of codes; log/1.jsonl names it" in self.refused(gallery)

    def test_codes_without_labels(self, result, gallery):
        made = result()
        write_codes(made.folder / made.files["query"], made.codes[1])
        assert "result/1_query.h5: no labels, which tell right from wrong" in self.refused(gallery)

    def test_codes_that_are_no_pair(self, result, gallery):
        made = result()
        path = made.folder / made.files["query"]
        write_codes(path, made.codes[1], made.labels[1][:, 1:])
        assert "result/1_query.h5: 4 classes, result/1_test.h5 has 5" in self.refused(gallery)
        write_codes(path, made.codes[1], made.labels[1], digest="e" * 16)
        err = self.refused(gallery)
        assert err.endswith("codes of another network than those of result/1_test.h5\n")  # no --force here

    def test_damaged_sources(self, result, gallery):
        made = result()
        for sources in ("[", "3", "[3]"):
            write_codes(made.folder / made.files["query"], made.codes[1], made.labels[1], sources=sources)
            assert "result/1_query.h5: damaged: 'sources'" in self.refused(gallery)

    def test_no_result(self, result, gallery):
        made = result()
        write_log(made.folder / "log/1.jsonl", {"event": "start"})
        assert "log/1.jsonl: no result of a test" in self.refused(gallery)

    def test_more_than_one_result(self, result, capsys):
        made = result()
        shutil.copy(made.folder / "log/1.jsonl", made.folder / "log/2.jsonl")
        assert main(["log", "--out", "page.html"]) == 2
        assert "log: 2 logs with a result, name one of them" in capsys.readouterr().err


OPTIONS = [f"--{each}" for each in (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "dump-dom")]  # fmt: skip


class Structure(HTMLParser):
    """Whether all that opens also closes, in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if not found and not os.environ.get("CI"):
        pytest.skip(f"none of {', '.join(names)} is there")
    assert found, f"none of {', '.join(names)} is there; .ci/run installs one"
    return found


@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_the_page(result, gallery, tmp_path, width):
    """Every picture is complete, nothing is wider than the window, and the page loads nothing else."""
    made = result()
    videos = TestVideos()
    videos.names(made, "test", [f"{'long' * 30}{i}.mp4" for i in range(40)])
    for i in range(40):
        videos.thumbnail(made, f"{'long' * 30}{i}.mp4")
    page = gallery("--queries", 2)[1]
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    assert not re.findall("(?:src|href)=.(?!data:)|url\\(|<script|@import", page)
    # The page forbids scripts: one that looks into it needs a copy that allows them.
    assert page.count("; style-src") == 1
    copy = page.replace("; style-src", "; script-src 'unsafe-inline'; style-src")
    look = """<script>onload = () => {
        const shown = [...document.images].filter(each => each.complete && each.naturalWidth == 8).length;
        const root = document.documentElement;
        document.title = `${shown} pictures, ${root.scrollWidth <= innerWidth}, ${innerWidth}` }</script>"""
    (tmp_path / "copy.html").write_text(copy.replace("</body>", f"{look}</body>"), encoding="utf-8")
    command = [browser(), f"--user-data-dir={tmp_path}/profile", f"--window-size={width},900", *OPTIONS]
    command.append((tmp_path / "copy.html").as_uri())
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert f"<title>60 pictures, true, {width}</title>" in shown
    assert "✓ right" in shown
    assert "✗ wrong" in shown
