"""The picture on top of the README: video clip -> frame features -> hash code -> nearest videos, as SVG.

Everything in it is made up, but consistent: a row of features per frame, and neighbours whose codes differ
from the code of the clip in as many bits as their distance says.
"""

import math
import random
from collections.abc import Iterable

SIZE = (800, 232)  # of the picture
TOP, ROW = 38, 32  # where the first of the frames starts, and from one to the next
N_FRAMES, N_FEATURES, N_BITS = 5, 16, 64
DISTANCES = (3, 6, 11, 27)  # of the neighbours, in bits
# GitHub shows the picture through an img tag, where this query follows the reader's theme.
STYLE = """
text { font: 12px -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
text { fill: #59636e; text-anchor: middle }
.head { font-size: 14px; font-weight: 600; fill: #1f2328 }
.distance { font-size: 13px; font-weight: 600; fill: #1f2328; text-anchor: end }
.arrow { stroke: #818b98; stroke-width: 1.5; fill: none }
.tip { fill: #818b98 }
.film { fill: #31383f }
.hole { fill: #ffffff }
.zero { fill: #dbe3ec }
.one { fill: #0969da }
.feature { fill: #0969da }
.differs { fill: #d1570a }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 }
  .head, .distance { fill: #f0f6fc }
  .film { fill: #3d444d }
  .hole { fill: #0d1117 }
  .zero { fill: #262d36 }
  .one, .feature { fill: #4493f8 }
  .differs { fill: #f0883e }
}
"""


def diagram() -> str:
    """The text of docs/diagram.svg."""
    rng = random.Random(5)
    code = rng.choices(("zero", "one"), k=N_BITS)
    width, height = SIZE
    parts = [
        *film(),
        *arrow(86, 138, "CNN"),
        *features(rng),
        *arrow(314, 374, "WSCH"),
        *squares(code, x=386, y=TOP + 6, step=18, across=8),
        *arrow(542, 598, "search"),
        *neighbours(code, rng),
    ]
    heads = {48: "video clip", 227: "frame features", 457: "hash code", 702: "nearest videos"}
    notes = {
        48: "25 frames",
        227: "25 × 4096 numbers",
        457: "64 bits = 8 bytes",
        702: "distance: bits that differ",
    }
    parts += [text(x, 20, head, "head") for x, head in heads.items()]
    parts += [text(x, height - 12, note) for x, note in notes.items()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">\n'
        "<title>A clip becomes frame features, these a hash code, and that finds the nearest videos</title>\n"
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def film() -> Iterable[str]:
    """The strip of frames, a ball flying through them from left to right."""
    yield rect(14, TOP - 5, 68, N_FRAMES * ROW + 8, "film", 4)
    for hole in range(2 * N_FRAMES):
        for x in (17, 75):
            yield rect(x, TOP + hole * ROW / 2 + 1, 4, 6, "hole", 1)
    for frame in range(N_FRAMES):
        yield from scene(24, TOP + frame * ROW, frame / (N_FRAMES - 1))


def scene(x: float, y: float, time: float, other: bool = False) -> Iterable[str]:
    """A frame of 48 x 27: a ball above a meadow at a time in [0, 1], or, in another video, a boat."""
    sky, ground = ("#f6cf9b", "#3f7fb0") if other else ("#a8d5f2", "#5fa55a")
    yield f'<rect x="{x:g}" y="{y:g}" width="48" height="27" fill="{sky}"/>'
    yield f'<rect x="{x:g}" y="{y + 19:g}" width="48" height="8" fill="{ground}"/>'
    if other:
        yield f'<path d="M{x + 14:g} {y + 19:g}h20l-5 5h-10z" fill="#7a4a2b"/>'
        yield f'<path d="M{x + 24:g} {y + 4:g}v14h9z" fill="#ffffff"/>'
    else:
        height = 12 * math.sin(math.pi * time)
        yield f'<circle cx="{x + 6 + 36 * time:.1f}" cy="{y + 18 - height:.1f}" r="4" fill="#d1242f"/>'


def features(rng: random.Random) -> Iterable[str]:
    """A row of numbers per frame: neighbouring frames are much alike."""
    values = [rng.random() for _ in range(N_FEATURES)]
    for frame in range(N_FRAMES):
        for column, value in enumerate(values):
            x, y = 147 + 10 * column, TOP + frame * ROW + 3
            yield rect(x, y, 9, 20, "feature", 1, opacity=value)
        values = [min(1, max(0.06, value + rng.gauss(0, 0.16))) for value in values]


def squares(kinds: Iterable[str], x: float, y: float, step: float, across: int) -> Iterable[str]:
    """A code as rows of ``across`` squares, each of its class of the style."""
    for place, kind in enumerate(kinds):
        down, right = divmod(place, across)
        yield rect(x + step * right, y + step * down, step - step / 8, step - step / 8, kind, step / 9)


def neighbours(code: list[str], rng: random.Random) -> Iterable[str]:
    """The nearest videos, nearest first: a frame, the code with the bits that differ, and their number."""
    gap = (N_FRAMES * ROW - 27 - 5) / (len(DISTANCES) - 1)
    for rank, distance in enumerate(DISTANCES):
        y = TOP + rank * gap
        flipped = set(rng.sample(range(N_BITS), distance))
        found = ["differs" if place in flipped else bit for place, bit in enumerate(code)]
        yield from scene(610, y, (rank + 1) / 4, other=distance > 20)
        yield from squares(found, x=664, y=y + 1, step=6.5, across=16)
        yield text(793, y + 18, str(distance), "distance")


def arrow(start: float, end: float, label: str) -> Iterable[str]:
    """An arrow half way down, with its label above."""
    y = TOP + N_FRAMES * ROW / 2 - 2
    yield text((start + end) / 2, y - 9, label)
    yield f'<path d="M{start} {y:g}H{end - 6}" class="arrow"/>'
    yield f'<path d="M{end} {y:g}l-9 -5v10z" class="tip"/>'


def rect(
    x: float, y: float, width: float, height: float, kind: str, radius: float = 0, opacity: float = 1
) -> str:
    """A rectangle of a class of the style."""
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:.1f}"'
    return f'<rect {place} class="{kind}"' + (f' opacity="{opacity:.2f}"/>' if opacity < 1 else "/>")


def text(x: float, y: float, content: str, kind: str = "note") -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{content}</text>'
