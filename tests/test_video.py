"""Frames of clips that show their own number: every chosen frame is the one the rule names."""

import os
import random
from fractions import Fraction
from itertools import pairwise
from math import floor
from pathlib import Path

import numpy as np
import pytest
from clips import H264, number, write_clip
from synthetic import need

from formats import video
from formats.files import BadInput
from formats.video import Undecodable, choose, read_frames

av = need("av")
need("PIL")

B_FRAMES = {"preset": "medium", "crf": 18, "bf": 3}
EVERY_12 = {**B_FRAMES, "g": 12, "x264-params": "scenecut=0"}
OPEN_GOPS = {**B_FRAMES, "g": 12, "x264-params": "open-gop=1:scenecut=0"}
REFRESH = {**H264, "g": 30, "x264-params": "intra-refresh=1"}
H265 = {"codec": "libx265", "preset": "ultrafast", "g": 12, "x265-params": "log-level=0"}
VP9 = {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": 8, "g": 20}
VP8 = {"codec": "libvpx", "deadline": "realtime", "cpu-used": 8, "g": 20}
MPEG4 = {"codec": "mpeg4", "g": 12}
MPEG2 = {"codec": "mpeg2video", "g": 12, "bf": 2}
UNEVEN = [floor(i**1.5) + i for i in range(90)]
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}

CLIPS = {
    "long GOP, B-frames": ("a.mp4", 150, {**B_FRAMES, "g": 250}),
    "many keyframes, B-frames": ("a.mp4", 150, EVERY_12),
    "many keyframes, Matroska": ("a.mkv", 150, EVERY_12),
    "open GOPs": ("a.mkv", 150, OPEN_GOPS),
    "refreshed without keyframes": ("a.mkv", 150, REFRESH),
    "in fragments": ("a.mp4", 150, {**EVERY_12, "container": FRAGMENTS}),
    "MOV": ("a.mov", 150, EVERY_12),
    "FLV": ("a.flv", 150, EVERY_12),
    "H.265": ("a.mp4", 60, H265),
    "AVI, H.264": ("a.avi", 150, EVERY_12),
    "MPEG-4": ("a.avi", 150, MPEG4),
    "MPEG-4, B-frames": ("a.avi", 150, {**MPEG4, "bf": 2}),
    "MPEG-TS": ("a.ts", 150, {**B_FRAMES, "g": 250}),
    "MPEG-TS, many keyframes": ("a.ts", 150, EVERY_12),
    "MPEG-TS, MPEG-2": ("a.ts", 150, MPEG2),
    "MPEG-TS, MPEG-4": ("a.ts", 150, MPEG4),
    "MPEG-PS": ("a.mpg", 150, MPEG2),
    "no container, no time stamps": ("a.h264", 60, EVERY_12),
    "VP9": ("a.webm", 100, VP9),
    "VP8": ("a.webm", 100, VP8),
    "lossless, all keyframes": ("a.mkv", 60, {"codec": "ffv1"}),
    "uneven times": ("a.mp4", 90, {**EVERY_12, "times": UNEVEN}),
    "uneven times, Matroska": ("a.mkv", 90, {**EVERY_12, "times": UNEVEN}),
    "begins late": ("a.mp4", 60, {**H264, "times": range(200, 320, 2)}),
    "begins late, Matroska": ("a.mkv", 60, {**H264, "times": range(200, 320, 2)}),
    "odd size, H.264": ("a.mp4", 30, {**H264, "size": (35, 51), "pix_fmt": "yuv444p"}),
    "odd size, VP9": ("a.webm", 30, {**VP9, "size": (35, 51)}),
    "odd size, MPEG-4": ("a.avi", 30, {**MPEG4, "size": (35, 51)}),
    **{f"{n} frames, {suffix}": (f"a.{suffix}", n, options) for n in (1, 7)
       for suffix, options in (("mp4", B_FRAMES), ("webm", VP9), ("avi", MPEG4), ("ts", B_FRAMES))},
}  # fmt: skip


def by_the_rule(n: int, wanted: int) -> list[int]:
    """The middle frames of equal parts, in exact numbers."""
    return [floor((i + Fraction(1, 2)) * n / wanted) for i in range(wanted)]


@pytest.fixture
def way(monkeypatch):
    """How videos were read: how often frames were counted, and how often there was a seek."""
    done = {"counted": 0, "seeks": 0}
    by_count, decoded = video._by_count, video._decoded

    def watched_by_count(*args):
        done["counted"] += 1
        return by_count(*args)

    def watched_decoded(container, stream, *start):
        done["seeks"] += len(start)
        return decoded(container, stream, *start)

    monkeypatch.setattr(video, "_by_count", watched_by_count)
    monkeypatch.setattr(video, "_decoded", watched_decoded)
    return done


@pytest.mark.parametrize("n", [1, 2, 7, 25, 26, 30, 749, 10_007])
@pytest.mark.parametrize("wanted", [1, 2, 25, 30])
def test_the_rule(n, wanted):
    chosen = choose(n, wanted)
    assert chosen == by_the_rule(n, wanted)
    assert len(chosen) == wanted
    assert 0 <= chosen[0] <= chosen[-1] < n
    assert [n - 1 - each for each in chosen[::-1]] == chosen or n * wanted % 2 == 0  # no end is preferred
    assert len(set(chosen)) == min(n, wanted)
    assert all(after - before in (n // wanted, n // wanted + 1) for before, after in pairwise(chosen))


@pytest.mark.parametrize(("name", "n", "options"), CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("wanted", [5, 25])
def test_every_chosen_frame_is_the_one_named(tmp_path, name, n, options, wanted):
    path = write_clip(tmp_path / name, range(n), **options)
    clip = read_frames(path, wanted, lambda image: (number(image), image.size, image.mode))
    size = options.get("size", (64, 48))
    assert clip.frames == [(each, size, "RGB") for each in by_the_rule(n, wanted)]
    assert number(clip.middle) == by_the_rule(n, wanted)[wanted // 2]
    assert clip.missing == 0


@pytest.mark.parametrize(
    ("name", "options"), [("a.mp4", EVERY_12), ("a.mkv", EVERY_12), ("a.mp4", OPEN_GOPS)]
)
def test_seeks_where_a_later_keyframe_helps(tmp_path, way, name, options):
    path = write_clip(tmp_path / name, range(240), **options)
    assert read_frames(path, 10, number).frames == by_the_rule(240, 10)
    assert way == {"counted": 0, "seeks": 10}  # the first one lies in the second GOP
    assert read_frames(path, 240, number).frames == list(range(240))
    assert way == {"counted": 0, "seeks": 10}, "the next frame needs no seeking"


@pytest.mark.parametrize(("name", "options"), [("a.ts", EVERY_12), ("a.h264", EVERY_12)])
def test_counts_where_time_stamps_do_not_help(tmp_path, way, name, options):
    path = write_clip(tmp_path / name, range(100), **options)
    assert read_frames(path, 10, number).frames == by_the_rule(100, 10)
    assert way["counted"] == 1


def test_packets_that_show_nothing_are_no_frames(tmp_path, way):
    """DivX writes pictures that are "not coded": packets with a time of their own that give no frame."""
    whole, path = write_clip(tmp_path / "a.mkv", range(100), **MPEG4), tmp_path / "b.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                empty = av.Packet(b"\0\0\1\xb6\x50\x4f")  # bits: 01 P, 0 1, 00000 time, 1, 0 not coded
                empty.pts = empty.dts = packet.pts + 25
                empty.time_base = packet.time_base
                for each in (packet, empty)[: 1 + (packet.pts % 250 == 0)]:
                    each.stream = stream
                    file.mux(each)
    with av.open(str(path)) as file:
        assert sum(packet.size > 0 for packet in file.demux(video=0)) == 120
    clip = read_frames(path, 30, number)
    assert (clip.frames, clip.missing) == (by_the_rule(100, 30), 20)
    assert way["counted"] == 1


def cut_by_edit_list(path: Path, first: int, shown: int, n: int, **options) -> Path:
    """A clip (20 frames a second, MP4 scale 10240) whose edit list shows frames from ``first`` on."""
    write_clip(path, range(n), **options)
    content = path.read_bytes()
    assert content.count(b"elst") == 1
    at = content.index(b"elst") + 12  # size of the entry, its start, its speed
    start = int.from_bytes(content[at + 4 : at + 8], "big")
    entry = (shown * 50).to_bytes(4, "big") + (start + first * 512).to_bytes(4, "big")
    path.write_bytes(content[:at] + entry + content[at + 8 :])
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("first", [10, 12, 30])
def test_what_an_edit_list_cuts_off_is_no_frame(tmp_path, way, suffix, first):
    path = cut_by_edit_list(tmp_path / f"a.{suffix}", first, 50, 100, **EVERY_12)
    clip = read_frames(path, 25, number)
    assert clip.frames == [first + each for each in by_the_rule(50, 25)]
    assert clip.missing == 0
    assert way == {"counted": 0, "seeks": 0}
    assert read_frames(path, 3, number).frames == [first + each for each in by_the_rule(50, 3)]
    assert way["seeks"]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_frames_stand_upright(tmp_path, suffix, rotation):
    written = write_clip(tmp_path / f"flat.{suffix}", [685], **H264)
    flat = read_frames(written, 1, np.asarray).frames[0]
    path = write_clip(tmp_path / f"a.{suffix}", [685], rotation=rotation, **H264)
    clip = read_frames(path, 1, np.asarray)
    np.testing.assert_array_equal(clip.frames[0], np.rot90(flat, rotation // 90))  # counterclockwise
    assert clip.middle.size == (48, 64) if rotation % 180 else (64, 48)


def test_a_matrix_a_phone_writes(tmp_path):
    """Held upright: "turn by 90 degrees clockwise", in the bytes of the MP4 itself."""
    path = write_clip(tmp_path / "a.mp4", [685], **H264)
    flat = read_frames(path, 1, np.asarray).frames[0]
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40  # (a b u, c d v, x y w) of 16.16 and 2.30 bits
    matrix = [0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30]
    assert content[at : at + 4] == (1 << 16).to_bytes(4, "big")
    path.write_bytes(content[:at] + b"".join(each.to_bytes(4, "big", signed=True) for each in matrix)
                     + content[at + 36 :])  # fmt: skip
    np.testing.assert_array_equal(read_frames(path, 1, np.asarray).frames[0], np.rot90(flat, -1))


def test_a_frame_is_prepared_once(tmp_path):
    path = write_clip(tmp_path / "a.mp4", range(3), **H264)
    seen = []
    clip = read_frames(path, 7, lambda image: seen.append(number(image)) or [number(image)])
    assert seen == [0, 1, 2]
    assert [each[0] for each in clip.frames] == [0, 0, 1, 1, 1, 2, 2]
    assert clip.frames[0] is clip.frames[1]


def test_what_prepare_raises_is_no_fault_of_the_video(tmp_path):
    path = write_clip(tmp_path / "a.mp4", range(3), **H264)
    with pytest.raises(ZeroDivisionError):
        read_frames(path, 1, lambda image: 1 / 0)


@pytest.mark.parametrize(("matrix", "full", "rgb"), [
    ("bt709", False, (255, 23, 0)), ("smpte170m", False, (254, 0, 0)), (None, False, (254, 0, 0)),
    ("bt709", True, (255, 36, 10)),
])  # fmt: skip
def test_colours_are_those_the_file_states(tmp_path, matrix, full, rgb):
    """Y, Cb, Cr 81, 90, 240: red in BT.601; the numbers are of its and BT.709's formula."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        matrices = {"bt709": 1, "smpte170m": 6, None: 2}
        stream.codec_context.colorspace = matrices[matrix]
        stream.codec_context.color_range = 2 if full else 1
        frame = av.VideoFrame(64, 48, "yuv420p")
        for plane, value in zip(frame.planes, (81, 90, 240), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.colorspace, frame.color_range = matrices[matrix], 2 if full else 1
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    pixels = read_frames(path, 1, np.asarray).frames[0].reshape(-1, 3)
    assert np.abs(pixels.astype(int) - rgb).max() <= 2


def test_the_same_bytes_again_in_one_thread(tmp_path):
    path = write_clip(tmp_path / "a.mp4", range(40), size=(320, 240), **EVERY_12)
    first = read_frames(path, 9, np.asarray).frames
    np.testing.assert_array_equal(read_frames(path, 9, np.asarray).frames, first)
    before = len(os.listdir("/proc/self/task"))
    assert read_frames(path, 9, lambda _: len(os.listdir("/proc/self/task"))).frames == [before] * 9


@pytest.mark.parametrize("name", ["a b.mp4", "été 视频.mp4", "a:b#1?x=%d.mp4", "-i.mp4", "http:__x.mp4"])
def test_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "plain.mp4", range(3), **H264).rename(tmp_path / name)
    assert read_frames(Path(name), 3, number).frames == [0, 1, 2]


def reason(path: Path) -> str:
    with pytest.raises(Undecodable) as caught:
        read_frames(path, 5, number)
    assert "\n" not in str(caught.value)
    assert path.name not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [
    b"", b"\0" * 4096, random.Random(0).randbytes(50_000), b"<!DOCTYPE html><html>404</html>\n" * 50,
], ids=["empty", "zeros", "garbage", "web page"])  # fmt: skip
def test_no_videos(tmp_path, capfd, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert reason(path) == "the file is empty" if not content else reason(path)
    assert capfd.readouterr() == ("", ""), "the library speaks"


@pytest.mark.parametrize(("name", "text"), [
    ("a.txt", "hello world\n" * 500), ("a.mp4", "ffconcat version 1.0\nfile b.ts\n"),
    ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nb.ts\n#EXT-X-ENDLIST\n"),
], ids=["drawn text", "list of files", "playlist"])  # fmt: skip
def test_what_the_library_takes_for_a_video(tmp_path, name, text):
    write_clip(tmp_path / "b.ts", range(3), **H264)
    path = tmp_path / name
    path.write_text(text)
    with av.open(str(path)) as file:
        assert file.streams.video
    assert reason(path) == "no video in it"


def test_sound_is_no_video(tmp_path):
    assert reason(write_clip(tmp_path / "a.m4a", [], sound=1)) == "no video in it"


def test_a_cover_picture_is_no_video(tmp_path):
    cover = av.stream.Disposition.attached_pic
    path = write_clip(tmp_path / "b.mp4", [0], "mjpeg", sound=1, pix_fmt="yuvj420p", disposition=cover)
    with av.open(str(path)) as file:
        assert len(file.streams.video) == 1, "the test's own picture is not there"
    assert reason(path) == "no video in it"


def test_missing_files_and_folders(tmp_path):
    assert reason(tmp_path / "no.mp4") == "cannot be opened: No such file or directory"
    assert reason(tmp_path) == "cannot be opened: Is a directory"


CUT = {
    "index at the end": ("a.mp4", {**H264, "g": 12}),
    "index first": ("a.mp4", {**H264, "g": 12, "container": {"movflags": "faststart"}}),
    "Matroska": ("a.mkv", {**H264, "g": 12}),
    "VP9": ("a.webm", VP9),
    "MPEG-4": ("a.avi", MPEG4),
}


@pytest.mark.parametrize(("name", "options"), CUT.values(), ids=CUT)
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_truncated(tmp_path, capfd, name, options, share):
    path = write_clip(tmp_path / name, range(150), **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    capfd.readouterr()
    expected = "cannot be opened" if options.get("container") is None and name == "a.mp4" else "truncated"
    assert reason(path).startswith(expected)
    assert capfd.readouterr() == ("", "")


FAST = {"movflags": "faststart"}
FEW = {
    "Matroska": ("a.mkv", H264),
    "AVI": ("a.avi", MPEG4),
    "MP4": ("a.mp4", {**H264, "bf": 0, "container": FAST}),
}


@pytest.mark.parametrize(("name", "options"), FEW.values(), ids=FEW)
@pytest.mark.parametrize("late", [0, 100])
def test_a_few_missing_frames_are_counted(tmp_path, name, options, late):
    """The file ends between two frames."""
    path = write_clip(tmp_path / name, range(200), times=range(late, late + 400, 2), **options)
    with av.open(str(path)) as file:
        last = [packet for packet in file.demux(video=0) if packet.size][190]
    path.write_bytes(path.read_bytes()[: last.pos - 8 * (name == "a.avi")])
    clip = read_frames(path, 5, number)
    assert clip.frames == by_the_rule(190, 5)
    assert clip.missing == 10 - 2 * (late and name == "a.avi")  # which fills the time before with nothing


def test_a_file_that_ends_within_its_last_frame(tmp_path):
    path = write_clip(tmp_path / "a.mp4", range(50), container=FAST, **H264)
    path.write_bytes(path.read_bytes()[:-1])
    assert reason(path) == "truncated: after 50 frames the file ends"


def test_a_chosen_frame_that_is_damaged(tmp_path):
    path = write_clip(tmp_path / "a.mp4", range(50), **{**EVERY_12, "bf": 0})
    with av.open(str(path)) as file:
        packet = [packet for packet in file.demux(video=0) if packet.size][25]
    content = bytearray(path.read_bytes())
    content[packet.pos + 12 : packet.pos + packet.size] = bytes(packet.size - 12)
    path.write_bytes(content)
    assert 25 in by_the_rule(50, 5)
    assert reason(path) == "a chosen frame is damaged"
    assert 25 not in by_the_rule(50, 2)
    assert read_frames(path, 2, number).frames == by_the_rule(50, 2)


def test_parts_joined_byte_by_byte(tmp_path):
    """As cameras' parts are joined; every time stamp is there twice."""
    path = write_clip(tmp_path / "a.ts", range(50), **EVERY_12)
    path.write_bytes(2 * path.read_bytes())
    assert read_frames(path, 25, number).frames == [each % 50 for each in by_the_rule(100, 25)]


def test_frames_left_out_on_purpose_are_not_missing(tmp_path):
    path = write_clip(tmp_path / "a.avi", range(100), times=range(0, 200, 2), **MPEG4)
    with av.open(str(path)) as file:  # AVI has 40 slots a second here, and 20 are filled
        assert file.streams.video[0].frames == 200
    assert read_frames(path, 5, number).missing == 0


def test_sound_that_goes_on_is_no_missing_video(tmp_path):
    path = write_clip(tmp_path / "a.mkv", range(60), sound=9, **H264)
    clip = read_frames(path, 5, number)
    assert (clip.frames, clip.missing) == (by_the_rule(60, 5), 0)


@pytest.mark.parametrize("options", [{**EVERY_12, "bf": 0}, MPEG4])
def test_frames_before_the_first_keyframe_are_none(tmp_path, options):
    """A recording that was begun between two keyframes."""
    path = write_clip(tmp_path / "a.ts", range(100), **options)
    content = path.read_bytes()
    with av.open(str(path)) as file:
        start = next(packet.pos for packet in list(file.demux(video=0))[5:])
    path.write_bytes(content[start - start % 188 :])
    frames = read_frames(path, 4, number).frames
    assert frames == [12 + each for each in by_the_rule(88, 4)]


@pytest.mark.parametrize(("name", "options"), [("a.mkv", EVERY_12), ("a.avi", MPEG4), ("a.webm", VP9)])
def test_damage_is_a_reason_or_a_picture(tmp_path, name, options):
    """Whatever bytes are overwritten, what comes is a clip or a reason."""
    path = write_clip(tmp_path / name, range(40), **options)
    content, rng = path.read_bytes(), random.Random(0)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 5, 40))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            outcomes.add(len(read_frames(path, 5, np.asarray).frames))
        except Undecodable:
            outcomes.add("reason")
    assert outcomes == {5, "reason"}


def test_files_are_closed(tmp_path):
    whole = write_clip(tmp_path / "a.mp4", range(20), **H264)
    empty = tmp_path / "b.mp4"
    empty.write_bytes(whole.read_bytes()[:600])
    before = sorted(Path("/proc/self/fd").iterdir())
    for _ in range(20):
        read_frames(whole, 3, number)
        reason(empty)
    assert len(sorted(Path("/proc/self/fd").iterdir())) == len(before)


def test_without_the_package_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", range(3), **H264)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(BadInput, match=r"^this needs PyAV: pip install -r requirements-video.txt$"):
        read_frames(path, 3, number)
