"""Frames out of a video file, by PyAV: L evenly spaced ones, each exactly the frame that was chosen.

A video's frames are those of its first video stream that is no cover picture, in display order, without what
an edit list cuts off. ``read_frames`` lists the time stamps of all (nothing is decoded for that), chooses by
``choose``, then decodes, each time from the last keyframe that helps. The decoded frames must follow the list
one by one; where they do not (no time stamps, hidden frames, a container that cannot seek) all frames are
decoded and counted instead.

A video is undecodable, not quietly shorter, when its file ends within a frame, lacks more than a tenth of
what its container promises, or has a frame that cannot be decoded on the way to a chosen one. Fewer missing
frames are counted: some recorders promise more than they write. So are packets that give no frame. MPEG-TS
promises nothing, so a cut shows nowhere; and what a decoder patches up unnoticed, nobody sees.

Pixels: decoded in one thread, turned upright as the file says, RGB by the file's own colour matrix and range
(where it names none, BT.601 and limited range). Brightness of high dynamic range is not mapped, and pixels
that are not square stay as they are.
"""

import contextlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from formats.files import optional_package

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream
    from PIL.Image import Image

NO_VIDEOS = ("tty", "concat", "hls")  # formats: any text drawn as a film, and lists of other files
MAX_MISSING = 0.1  # of the promised frames; where more are missing, the file is truncated


class Undecodable(ValueError):
    """A video that cannot be used; the message is its reason, one line without the path."""


class _Unlisted(Exception):  # noqa: N818 - no error: another way is tried
    """The decoder's frames are not those of the list."""


@dataclass(frozen=True)
class Clip:
    """The chosen frames of a video.

    Attributes:
        frames: what ``prepare`` made of each, L; a frame chosen twice stands there twice, the same object.
        middle: frame L // 2 of them, the picture of the video.
        missing: number of frames that the container promised, by its length or its packets, and did not hold.
    """

    frames: list[Any]
    middle: "Image"
    missing: int


@dataclass(frozen=True)
class _Listing:
    """What the packets of a video tell before anything is decoded.

    Attributes:
        times: time stamps of the shown frames, in display order; ``None`` where a packet has none.
        keys: place in ``times`` of the first frame shown from every keyframe on, ascending.
        missing: as in ``Clip``.
    """

    times: list[int | None]
    keys: list[int]
    missing: int


def choose(n_frames: int, wanted: int) -> list[int]:
    """The rule: frame floor((i + 1/2) n / L) for i in 0..L-1, the middle one of each of L equal parts.

    Args:
        n_frames: of the video, n.
        wanted: how many to choose, L; beyond n, frames are repeated in order.

    Returns:
        Their numbers in display order, from 0, ascending, L.
    """
    return [(2 * i + 1) * n_frames // (2 * wanted) for i in range(wanted)]


def read_frames(path: Path, wanted: int, prepare: Callable[["Image"], Any]) -> Clip:
    """Decode evenly spaced frames of a video.

    Args:
        path: of the video file; nothing but this file is read.
        wanted: how many frames, L.
        prepare: is given each chosen frame once, as an RGB image, in display order; what it returns is kept,
            the frame is not.

    Returns:
        What was made of the frames.

    Raises:
        Undecodable: the video cannot be used.
        BadInput: PyAV or Pillow is not installed.
    """
    listing = _list(path)
    try:
        return _by_time(path, listing, wanted, prepare)
    except _Unlisted:
        return _by_count(path, listing, wanted, prepare)


def _list(path: Path) -> _Listing:
    """Read all packets of a video, decoding none."""
    times, keys, n_packets, last, begin, end = [], [], 0, None, float("inf"), float("-inf")
    with _opened(path) as (container, stream):
        for packet in _packets(container):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            n_packets, last = n_packets + 1, packet
            if packet.pts is not None:
                begin = min(begin, float(packet.pts * packet.time_base))
            if packet.is_keyframe:
                keys.append(packet.pts)
            if keys and not packet.is_discard:  # before the first keyframe nothing can be decoded
                times.append(packet.pts)
        promised = _promised_end(container, stream)
    if not times:
        raise Undecodable("no keyframe" if n_packets else "no frame")
    missing = 0
    if promised is not None and begin < end < promised:
        missing = int(n_packets * (promised - end) / (end - begin))
    if last.is_corrupt or missing > max(1, MAX_MISSING * (n_packets + missing)):
        raise Undecodable(f"truncated: after {n_packets} frames the file ends")
    if None in times:
        return _Listing([None] * len(times), [], missing)
    times.sort()
    return _Listing(times, sorted(bisect_left(times, key) for key in keys if key is not None), missing)


def _promised_end(container: "InputContainer", stream: "VideoStream") -> float | None:
    """When a container says that it ends, in seconds; ``None``: it says nothing about what is not there.

    The number of frames it names (``stream.frames``) will not do: AVI counts frames that were left out on
    purpose, MP4 those that an edit list cuts off, Matroska names none.
    """
    if container.format.name == "avi":
        return float(stream.frames * stream.time_base)
    if container.duration and "matroska" in container.format.name:
        return container.duration / 1e6
    if container.duration and "mp4" in container.format.name:
        return ((container.start_time or 0) + container.duration) / 1e6
    return None


def _by_time(path: Path, listing: _Listing, wanted: int, prepare: Callable[["Image"], Any]) -> Clip:
    """Take the frames of the chosen time stamps, seeking where a later keyframe helps.

    Raises:
        _Unlisted: what is decoded does not follow the list.
    """
    if listing.times[0] is None:
        raise _Unlisted
    places = {time: place for place, time in enumerate(listing.times)}
    chosen = _Chosen(len(listing.times), wanted, prepare)
    with _opened(path) as (container, stream):
        frames, place, follows = _decoded(container, stream), -1, True
        for target in chosen.places:
            key = listing.keys[bisect_right(listing.keys, target) - 1]
            if key > place + 1:
                frames, follows = _decoded(container, stream, listing.times[key]), False
            while place != target:
                frame = next(frames, None)
                step = places.get(frame and frame.pts, -1) - place
                if step < 1 or (follows and step > 1):  # after a seek, any step forward
                    raise _Unlisted
                place, follows = place + step, True
            chosen.take(place, frame)
    return chosen.clip(listing.missing)


def _by_count(path: Path, listing: _Listing, wanted: int, prepare: Callable[["Image"], Any]) -> Clip:
    """Number the frames as they are decoded; once more, if there were not as many as packets."""
    n_frames = len(listing.times)
    while True:
        chosen = _Chosen(n_frames, wanted, prepare)
        with _opened(path) as (container, stream):
            count = 0
            for frame in _decoded(container, stream):
                if count in chosen.places:
                    chosen.take(count, frame)
                count += 1
        if not count:
            raise Undecodable("no frame can be decoded")
        if count == n_frames:
            return chosen.clip(listing.missing + max(0, len(listing.times) - count))
        n_frames = count


class _Chosen:
    """The chosen frames of a video of n, while they come in."""

    def __init__(self, n_frames: int, wanted: int, prepare: Callable[["Image"], Any]):
        self.order = choose(n_frames, wanted)
        self.places = dict.fromkeys(self.order)  # each once, ascending
        self.prepare, self.prepared, self.middle = prepare, {}, None

    def take(self, place: int, frame: "VideoFrame") -> None:
        """Prepare the frame of a place."""
        image = _image(frame)
        if place == self.order[len(self.order) // 2]:
            self.middle = image
        self.prepared[place] = self.prepare(image)

    def clip(self, missing: int) -> Clip:
        """All of them."""
        return Clip([self.prepared[place] for place in self.order], self.middle, missing)


@contextlib.contextmanager
def _reasons(doing: str) -> Iterator[None]:
    """Whatever the library raises becomes a reason; damaged files make it raise errors of any kind."""
    try:
        yield
    except (Undecodable, _Unlisted):
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Undecodable(f"{doing}: {' '.join(reason.split())}") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """A video file and its video stream."""
    av = optional_package("av", "PyAV", "video")
    with _reasons("cannot be opened"):
        if not path.stat().st_size:
            raise Undecodable("the file is empty")
        container = av.open(f"file:{path}", metadata_errors="ignore")  # else "a:b.mp4" names a protocol
    with container:
        picture = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
        streams = [each for each in container.streams.video if not each.disposition & picture]
        if not streams or container.format.name in NO_VIDEOS:
            raise Undecodable("no video in it")
        if streams[0].codec_context is None:
            raise Undecodable("no decoder for its codec")
        streams[0].thread_count = 1  # processes share the cores, and no result depends on threads
        yield container, streams[0]


def _packets(container: "InputContainer", *streams: "VideoStream") -> Iterator["Packet"]:
    """The packets from here on; an empty one would end the decoder."""
    with _reasons("cannot be read"):
        for packet in container.demux(*streams):
            if packet.size:
                yield packet


def _decoded(
    container: "InputContainer", stream: "VideoStream", start: int | None = None
) -> Iterator["VideoFrame"]:
    """The frames from the next keyframe on, in display order; first go to one at or before a time stamp."""
    with _reasons("cannot be decoded"):
        if start is not None:
            container.seek(start, stream=stream)
        for packet in dropwhile(lambda packet: not packet.is_keyframe, _packets(container, stream)):
            yield from stream.decode(packet)
        yield from stream.decode(None)


def _image(frame: "VideoFrame") -> "Image":
    """A frame as an RGB image, upright."""
    pillow = optional_package("PIL.Image", "Pillow", "video")
    scaler = optional_package("av.video.reformatter", "PyAV", "video").Interpolation
    with _reasons("cannot be decoded"):
        if frame.is_corrupt:
            raise Undecodable("a chosen frame is damaged")
        # These flags make the same bytes on every processor.
        exact = scaler.BILINEAR | scaler.ACCURATE_RND | scaler.BITEXACT
        image = pillow.fromarray(frame.to_ndarray(format="rgb24", interpolation=exact, threads=1))
    turns = {90: "ROTATE_90", 180: "ROTATE_180", 270: "ROTATE_270"}  # counterclockwise, both here and there
    turn = turns.get(round(frame.rotation / 90) * 90 % 360)
    return image.transpose(pillow.Transpose[turn]) if turn else image
