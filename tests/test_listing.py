"""Which videos a dataset is made of: lists, folders, splits, and names that cannot be used."""

import os
import time

import pytest

from formats.files import BadInput
from tools.listing import list_videos

FRACTIONS = (0.5, 0.35, 0.15)


@pytest.fixture
def write(tmp_path):
    """A list with these lines."""

    def write(*lines, encoding="utf-8", end="\n"):
        (tmp_path / "list.csv").write_bytes(end.join(lines).encode(encoding))
        return tmp_path / "list.csv"

    return write


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


class TestList:
    def test_columns_in_any_order(self, write, tmp_path):
        path = write(
            "class,file,split", "b; a ;b,x.mp4,query", ",d/y y.mp4,database", 'ü,"z,1.mp4",train', ""
        )
        videos, said = list_videos(path, FRACTIONS, 0)
        assert [video.file for video in videos] == ["z,1.mp4", "d/y y.mp4", "x.mp4"]
        assert [video.split for video in videos] == ["train", "test", "query"]
        assert [video.classes for video in videos] == [("ü",), (), ("b", "a")]
        assert videos[1].path == tmp_path / "d/y y.mp4"
        assert said == f"splits as in {path}"

    @pytest.mark.parametrize(("encoding", "end"), [("utf-8-sig", "\r\n"), ("utf-8", "\n")])
    def test_as_a_spreadsheet_writes_it(self, write, encoding, end):
        path = write("file,split", "é.mp4,train", "b.mp4,test", "c.mp4,query", encoding=encoding, end=end)
        assert [video.file for video in list_videos(path, FRACTIONS, 0)[0]] == ["é.mp4", "b.mp4", "c.mp4"]

    def test_names_lead_nowhere(self, write):
        path = write("file", "../a/./x.mp4", "/b/y.mp4", "c/../z.mp4")
        videos, _ = list_videos(path, (0.4, 0.3, 0.3), 0)
        assert sorted(video.name for video in videos) == ["a/x.mp4", "b/y.mp4", "z.mp4"]

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["file,split", "a.mp4,train", "b.mp4,valid"], "line 3: 'split' must be train, test (or"),
            (["file,split", "a.mp4,train", "b.mp4,"], "line 3: 'split' must be train"),
            (["file", "a.mp4", "b.mp4", "./a.mp4"], "line 4: ./a.mp4 stands in line 2 already"),
            (["file,class", "a.mp4,x", "b.mp4"], "line 3: 1 cells, expected 2"),
            (["file,class", "a.mp4,x,y"], "line 2: 3 cells, expected 2"),
            (["file", '"a.mp4'], "line 2: unexpected end of data"),
            (["name", "a.mp4"], "line 1: expected a header with 'file', and perhaps"),
            (["file,label", "a.mp4,1"], "unknown key 'label'"),
            (["file,file", "a.mp4,1"], "column 'file' twice"),
            (["file,class", ",1"], "line 2: 'file' is empty"),
            (["file", "a\x07.mp4"], "characters that cannot be printed: 'a\\x07.mp4'"),
            (["file,class", "a.mp4,\x07"], "line 2: 'class' holds characters that cannot be printed"),
            (["file", "a" * 300], "line 2: a file name too long"),
            (["file", ".."], "line 2: no file: .."),
            (["file"], "list.csv: lists no video"),
            ([""], "line 1: expected a header"),
            (["file,split", "a.mp4,train", "b.mp4,test"], "no video for query among its 2"),
            (["file", "a.mp4", "b.mp4"], "no video for query among its 2"),
        ],
    )  # fmt: skip
    def test_refusals(self, write, lines, message):
        with pytest.raises(BadInput) as error:
            list_videos(write(*lines), FRACTIONS, 0)
        assert message in str(error.value)
        assert "list.csv: " in str(error.value)

    @pytest.mark.parametrize("name", ["at 3.14\u202fPM", "映像\u30001", "\U0001f468\u200d\U0001f469", "\xa0"])
    def test_names_as_they_are_found(self, write, name):
        """macOS puts narrow spaces into the names of recordings; Python calls these not printable."""
        videos, _ = list_videos(write("file,class", f"a{name}.mov,{name}x", "b,", "c,", "d,"), FRACTIONS, 0)
        assert (f"a{name}.mov", (f"{name}x".strip(),)) in [(video.name, video.classes) for video in videos]

    def test_its_classes_are_those_of_its_column(self, write):
        with pytest.raises(
            BadInput, match="list.csv: --classes folders is for a folder of videos, a list has"
        ):
            list_videos(write("file", "a/x.mp4"), FRACTIONS, 0, class_folders=True)

    def test_no_text(self, tmp_path):
        (tmp_path / "x.csv").write_bytes(b"file\n\xff\n")
        with pytest.raises(BadInput, match="x.csv: cannot be read: not UTF-8"):
            list_videos(tmp_path / "x.csv", FRACTIONS, 0)
        with pytest.raises(BadInput, match="none.csv: cannot be read: No such file"):
            list_videos(tmp_path / "none.csv", FRACTIONS, 0)

    def test_twenty_thousand(self, write):
        path = write("file,class", *(f"folder/{number}.mp4,{number % 100}" for number in range(20_000)))
        start = time.process_time()
        assert len(list_videos(path, FRACTIONS, 0)[0]) == 20_000
        assert time.process_time() - start < 3


class TestFolder:
    def test_what_looks_like_a_video(self, tmp_path):
        touch(tmp_path, "b.MP4", "a/c.webm", ".hidden.mp4", ".cache/x.mp4", "notes.txt", "ä ö.mkv", "a.mp4")
        videos, said = list_videos(tmp_path, (0.5, 0.25, 0.25), 3)
        assert sorted(video.file for video in videos) == ["a.mp4", "a/c.webm", "b.MP4", "ä ö.mkv"]
        assert [video.split for video in videos] == ["train", "train", "test", "query"]
        assert said == f"no splits in {tmp_path}: drawn at random by 0.5 0.25 0.25, seed 3"

    def test_links_are_followed_but_not_for_ever(self, tmp_path):
        touch(tmp_path, "in/a.mp4", "in/b.mp4", "out/c.mp4")
        os.symlink(tmp_path / "out", tmp_path / "in/linked")
        os.symlink(tmp_path / "in", tmp_path / "in/again")
        os.symlink(tmp_path / "in/a.mp4", tmp_path / "in/d.mp4")
        names = [video.file for video in list_videos(tmp_path / "in", FRACTIONS, 0)[0]]
        assert sorted(names) == ["a.mp4", "b.mp4", "d.mp4", "linked/c.mp4"]

    def test_a_folder_that_cannot_be_read(self, tmp_path, monkeypatch):
        touch(tmp_path, "a.mp4", "b/c.mp4")
        look = os.scandir

        def refused(path):
            if os.path.basename(path) == "b":
                raise PermissionError(13, "Permission denied", path)
            return look(path)

        monkeypatch.setattr("os.scandir", refused)
        with pytest.raises(BadInput, match="b: cannot be read: Permission denied$"):
            list_videos(tmp_path, FRACTIONS, 0)

    def test_three_folders_are_the_splits(self, tmp_path):
        touch(tmp_path, "test/b.mp4", "query/c.mp4", "train/x/a.mp4")
        videos, said = list_videos(tmp_path, FRACTIONS, 0)
        assert [(video.file, video.split) for video in videos] == [
            ("train/x/a.mp4", "train"), ("test/b.mp4", "test"), ("query/c.mp4", "query")]  # fmt: skip
        assert said == f"splits as in {tmp_path}"
        touch(tmp_path, "d.mp4")
        assert "drawn at random" in list_videos(tmp_path, FRACTIONS, 0)[1]

    @pytest.mark.parametrize("splits", ["", "three"])
    def test_folders_as_classes(self, tmp_path, splits):
        """The uppermost, below the splits where there are any; of a video beside them none."""
        inside = ("train", "test", "query") if splits else ("",) * 3
        touch(tmp_path, *(f"{top}/{name}".lstrip("/") for top, name in zip(
            inside, ("run/a.mp4", "jump high/2019/b.mp4", "c.mp4"), strict=True)))  # fmt: skip
        videos, said = list_videos(tmp_path, (0.4, 0.3, 0.3), 0, class_folders=True)
        found = {video.path.name: video.classes for video in videos}
        assert found == {"a.mp4": ("run",), "b.mp4": ("jump high",), "c.mp4": ()}
        assert said.endswith("; 2 classes, by folders: jump high, run")
        without, said = list_videos(tmp_path, (0.4, 0.3, 0.3), 0)
        assert without == [video._replace(classes=()) for video in videos]
        hint = "; no classes; --classes folders would take its 2 folders (jump high, run) as classes"
        assert said.endswith(hint)

    def test_folders_that_can_be_no_classes(self, tmp_path):
        touch(tmp_path, *(f"UCF-101/run/{number}.mp4" for number in range(4)))
        with pytest.raises(BadInput, match="--classes folders: expected two folders or .*, found UCF-101$"):
            list_videos(tmp_path, FRACTIONS, 0, class_folders=True)
        with pytest.raises(BadInput, match="expected two folders or more .*, found none$"):
            list_videos(tmp_path / "UCF-101/run", FRACTIONS, 0, class_folders=True)
        assert "classes" not in list_videos(tmp_path, FRACTIONS, 0)[1]

    @pytest.mark.parametrize("files", [
        ["train/run/a.mp4", "test/run/b.mp4", "train/jump/c.mp4", "val/jump/d.mp4"],
        ["train/run/a.mp4", "test/run/b.mp4", "query/jump/c.mp4", "beside.mp4"],
    ])  # fmt: skip
    def test_folders_of_other_splits_are_no_classes(self, tmp_path, files):
        touch(tmp_path, *files)
        with pytest.raises(
            BadInput, match="its splits, which are train, test and query, found (test|query), t"
        ):
            list_videos(tmp_path, FRACTIONS, 0, class_folders=True)
        assert "classes" not in list_videos(tmp_path, FRACTIONS, 0)[1]

    def test_a_class_called_train(self, tmp_path):
        touch(tmp_path, *(f"{name}/{number}.mp4" for name in ("bus", "train") for number in range(3)))
        assert (
            "2 classes, by folders: bus, train" in list_videos(tmp_path, FRACTIONS, 0, class_folders=True)[1]
        )

    def test_the_draw(self, tmp_path):
        touch(tmp_path, *(f"{number:03}.mp4" for number in range(100)))
        one, same, other = (list_videos(tmp_path, FRACTIONS, seed)[0] for seed in (1, 1, 2))
        assert one == same != other
        splits = [video.split for video in one]
        assert splits == ["train"] * 50 + ["test"] * 35 + ["query"] * 15
        assert len({video.file for video in one}) == 100
        assert [video.file for video in one[:50]] == sorted(video.file for video in one[:50])

    def test_refusals(self, tmp_path):
        with pytest.raises(BadInput, match=r"no video below it \(a name ends in .3gp, .asf"):
            list_videos(tmp_path, FRACTIONS, 0)
        touch(tmp_path, "a\nb.mp4")
        with pytest.raises(BadInput, match=r"cannot be printed: 'a\\nb.mp4'"):
            list_videos(tmp_path, FRACTIONS, 0)
