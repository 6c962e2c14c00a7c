"""Synthetic clips whose frames show their own number as bars, and how to read it back."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from synthetic import need

if TYPE_CHECKING:
    from PIL.Image import Image

BITS = 10  # bars, from the left: the binary digits of the number, the highest first
H264 = {"preset": "ultrafast", "crf": "18"}


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """A grey frame (H, W, 3): a white or black bar a digit in the upper half, grey below; so it has a top."""
    width, height = size
    digits = np.array([number >> (BITS - 1 - bit) & 1 for bit in range(BITS)], np.uint8)
    frame = np.full((height, width, 3), 128, np.uint8)
    frame[: height // 2] = 20 + 215 * digits[np.arange(width) * BITS // width][:, None]
    return frame


def number(image: "Image") -> int:
    """The number that a frame shows; a frame that shows none fails."""
    rows = np.asarray(image.convert("L"), np.float64)
    height, width = rows.shape
    bars, below = rows[height // 8 : 3 * height // 8].mean(0), rows[5 * height // 8 : 7 * height // 8]
    centers = bars[((np.arange(BITS) + 0.5) * width / BITS).astype(int)]
    assert np.abs(below - 128).max() < 50, "upside down, or no such frame"
    assert np.abs(centers - 128).min() > 50, f"no clear bars: {centers}"
    return int("".join(str(int(bar)) for bar in centers > 128), 2)


def write_clip(
    path: Path,
    numbers: Sequence[int],
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    times: Sequence[int] | None = None,
    rotation: int = 0,
    pix_fmt: str = "yuv420p",
    disposition: int = 0,
    sound: float = 0,
    container: dict[str, str] | None = None,
    **options,
) -> Path:
    """Write a clip of numbered frames.

    Args:
        path: its suffix names the container.
        numbers: that the frames show; none for sound alone.
        codec: of the video.
        size: width and height.
        times: of the frames, in fortieths of a second; without, 20 frames a second.
        rotation: that the file asks of who shows it, counterclockwise, in degrees.
        pix_fmt: of the video.
        disposition: of the video stream, such as a cover picture's.
        sound: how many seconds of silence there are beside the video.
        container: its options.
        **options: of the codec.
    """
    av = need("av")
    unit = Fraction(1, 40 if times else 20)
    with av.open(str(path), "w", options=container or {}) as file:
        if numbers:
            stream = file.add_stream(
                codec, rate=20, options={key: str(each) for key, each in options.items()}
            )
            stream.width, stream.height = size
            stream.pix_fmt = pix_fmt
            stream.codec_context.time_base = stream.time_base = unit
            stream.disposition = disposition
            if rotation:
                stream.set_display_rotation(rotation)
        if sound:
            silence = file.add_stream("aac", rate=8000, layout="mono")
        for time, each in zip(times or range(len(numbers)), numbers, strict=True):
            frame = av.VideoFrame.from_ndarray(picture(each, size), format="rgb24")
            frame.pts, frame.time_base = time, unit
            file.mux(stream.encode(frame))
        if numbers:
            file.mux(stream.encode(None))
        for start in range(0, int(8000 * sound), 1000):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, start
            file.mux(silence.encode(frame))
        if sound:
            file.mux(silence.encode(None))
    return path
