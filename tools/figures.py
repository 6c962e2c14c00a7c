"""The figures of ``tools.plot``: what a log must hold for one, its numbers, its picture.

A picture is drawn from the rows of numbers of ``tools/series.py`` and nothing else: what is drawn is what
``--data`` writes. Of several runs, a curve is the mean, a band one standard deviation to either side.
"""

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from formats.files import BadInput, optional_package
from tools.logs import BY_RADIUS, Log
from tools.series import Row, balance, code_map, cuts, distances, losses, radii
from tools.tested import lacking
from tools.trials import Group

# Okabe & Ito: told apart by every kind of colour vision. Without their yellow, which is pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000")
LINES = ("-", "--", "-.", ":")  # so that it can be read in grey, too
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
GREY = "#999999"
BOUNDS = {  # below the curves, which may reach them
    "ceiling": {"color": GREY, "linestyle": "--", "zorder": 1},
    "chance": {"color": GREY, "linestyle": ":", "zorder": 1},
}
PAIRS = {
    "relevant": {"color": COLOURS[0], "linestyle": "-"},
    "other": {"color": COLOURS[1], "linestyle": "--"},
}
WIDTH, LINE, LETTERS = 8.0, 0.17, 115  # inches: of a figure, of a line of text; letters in such a line
STYLE = {
    "savefig.dpi": 200,  # 1600 pixels wide, of which a README shows every second
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "wsch",  # the same numbers, the same bytes
}
# The kinds of files; without what says when and by which version they were made.
FORMATS = {
    ".png": {"Software": None},
    ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    ".svg": {"Creator": None, "Date": None},
}


def draw(name: str, rows: Sequence[Row], kind: str, path: Path) -> None:
    """Draw a figure from its rows into a file.

    Args:
        name: of ``FIGURES``.
        rows: its numbers, one or more.
        kind: of file: ``.png``, ``.pdf`` or ``.svg``.
        path: to write.

    Raises:
        BadInput: matplotlib is missing.
    """
    matplotlib = optional_package("matplotlib", "matplotlib", "plot")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = FIGURES[name].picture(rows)
        figure.savefig(path, format=kind.removeprefix("."), metadata=FORMATS[kind])


# --------------------------------------------------------------------------------------------- rows and looks


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def column(rows: Sequence[Row], key: str) -> list[Any]:
    """The values of one column."""
    return [row[key] for row in rows]


def distinct(rows: Sequence[Row], *keys: str) -> list[tuple]:
    """The different values of some columns, in the order of the rows."""
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))


def look(number: int) -> Row:
    """Colour, line and marker of a series or class."""
    kinds = {"color": COLOURS, "linestyle": LINES, "marker": MARKERS}
    return {key: each[number % len(each)] for key, each in kinds.items()}


def looks(rows: Sequence[Row]) -> dict[str, Row]:
    """The look of every series."""
    return {name: look(number) for number, (name,) in enumerate(distinct(rows, "series"))}


def counted(rows: Sequence[Row], name: str) -> str:
    """A series with the number of its runs where these are several, in some panel or at some point."""
    runs = column(select(rows, series=name), "runs")
    several = f"{min(runs)} to {max(runs)}" if min(runs) < max(runs) else max(runs)
    return f"{name} ({several} runs)" if max(runs) > 1 else name


def legend_of(rows: Sequence[Row]) -> dict[str, Row]:
    """The look of every series by its label."""
    return {counted(rows, name): each for name, each in looks(rows).items()}


def means(rows: Sequence[Row]) -> str:
    """The sentence of a caption that says what curves and bands are."""
    if max(column(rows, "runs")) == 1:
        return "Each curve is one run."
    return "Curves are means over runs with other seeds, bands (at one K, bars) a standard deviation (n - 1)."


# -------------------------------------------------------------------------------------------------- panels


def panels(titles: Sequence[str], columns: int, height: float = 2.5) -> tuple[Any, list[Any]]:
    """A figure, and its panels in rows of some columns, each with its title.

    Raises:
        BadInput: matplotlib is missing.
    """
    columns = min(columns, len(titles))
    lines = -(-len(titles) // columns)
    module = optional_package("matplotlib.figure", "matplotlib", "plot")
    figure = module.Figure((WIDTH, lines * height), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title("\n".join(textwrap.wrap(title, LETTERS // columns - 4)))
    for spare in axes[len(titles) :]:
        spare.set_axis_off()
    return figure, axes[: len(titles)]


def finish(figure: Any, caption: str, legend: dict[str, Row]) -> Any:
    """Put a legend (looks by label) above the panels, the caption below, and make room for both."""
    text, height = textwrap.wrap(caption, LETTERS), figure.get_size_inches()[1]
    if legend := {"\n".join(textwrap.wrap(label, LETTERS - 8)): each for label, each in legend.items()}:
        line = optional_package("matplotlib.lines", "matplotlib", "plot").Line2D
        handles = [line([], [], label=label, **each) for label, each in legend.items()]
        columns = max(1, min(len(legend), LETTERS // (max(map(len, legend)) + 8)))
        figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False)
        height += (-(-len(legend) // columns) + "".join(legend).count("\n")) * LINE
    figure.supxlabel("\n".join(text), x=0.01, ha="left", fontsize=8.5, linespacing=1.3)
    figure.set_size_inches(WIDTH, height + len(text) * LINE)
    return figure


def curve(ax: Any, rows: Sequence[Row], x: str, y: str, scale: float = 1, **each: Any) -> None:
    """A mean, within one standard deviation to either side where all of it is over several runs.

    A single point has a marker, if need be a dash, and a bar in place of the band.
    """
    places, mean = column(rows, x), scale * np.array(column(rows, y))
    single = {"marker": "_", "markersize": 24} if len(rows) == 1 and not each.get("marker") else {}
    ax.plot(places, mean, **each | single)
    if f"{y}_sd" in rows[0] and None not in (deviation := column(rows, f"{y}_sd")):
        if len(rows) == 1:
            ax.errorbar(places, mean, scale * np.array(deviation), color=each["color"], capsize=4)
            return
        low, high = (mean + side * np.array(deviation) for side in (-scale, scale))
        ax.fill_between(places, low, high, color=each["color"], alpha=0.2, linewidth=0)


def draw_losses(rows: Sequence[Row]) -> Any:
    """A panel for every term of every pass; of evaluations, of the smallest and the largest K."""
    ks = sorted(int(row["term"].removeprefix("mAP@")) for row in rows if row["pass"] == "evaluation")
    hidden = {f"mAP@{k}" for k in ks} - {f"mAP@{k}" for k in (ks[:1] + ks[-1:])}
    keys = [key for key in distinct(rows, "dataset", "stage", "pass", "term") if key[-1] not in hidden]
    names = {"inertia": "inertia (squared distance)", "rounds": "k-means rounds"}
    styles = looks(rows)
    figure, axes = panels([f"{dataset}, {stage}: {part}" for dataset, stage, part, _ in keys], 3)
    for ax, (dataset, stage, part, term) in zip(axes, keys, strict=True):
        here = select(rows, dataset=dataset, stage=stage, term=term, **{"pass": part})
        for log, name in distinct(here, "log", "series"):
            line = select(here, log=log)
            curve(ax, line, "epoch", "value", **styles[name] | {"marker": "." if len(line) < 20 else ""})
        ax.set(xlabel="epoch", ylabel=term if part == "evaluation" else names.get(term, f"{term} loss"))
        ax.xaxis.get_major_locator().set_params(integer=True)
    caption = (
        "Terms of the loss by epoch, a panel for every term of every pass: means over batches, times the "
        "term's weight; one line a run. A term should fall and level off; inertia and rounds only tell how "
        f"k-means went.{' mAP@K should rise; it is of the test split, for looking only.' if ks else ''}"
    )
    return finish(figure, caption, {name: each | {"marker": ""} for name, each in styles.items()})


def draw_cuts(rows: Sequence[Row]) -> Any:
    """A panel for every dataset: mAP@K over K, between chance and ceiling."""
    datasets = [dataset for (dataset,) in distinct(rows, "dataset")]
    figure, axes = panels(datasets, 2, 3.6)
    for ax, dataset in zip(axes, datasets, strict=True):
        here = select(rows, dataset=dataset)
        for name, each in looks(rows).items():
            for quantity, how in {"mAP": each, **BOUNDS}.items():
                if line := select(here, series=name, quantity=quantity):
                    curve(ax, line, "K", "value", **how)
        highest = max(column(here, "value"))
        ax.set(xlabel="K (nearest videos)", ylabel="mAP@K", ylim=(0, 1.04 * highest or 1))
        ax.set_xticks(sorted(set(column(here, "K"))))
    caption = (
        f"mAP@K of the first K videos of the ranking; higher is better. {means(rows)} Grey: chance, and the "
        "ceiling that a perfect ranking reaches (AP@K is divided by K, so few relevant videos bound it)."
    )
    bounds = {key: each for key, each in BOUNDS.items() if select(rows, quantity=key)}
    return finish(figure, caption, legend_of(rows) | bounds)


def draw_radii(rows: Sequence[Row]) -> Any:
    """A panel for every dataset: precision over recall, radius by radius."""
    datasets = [dataset for (dataset,) in distinct(rows, "dataset")]
    figure, axes = panels(datasets, 2, 3.6)
    for ax, dataset in zip(axes, datasets, strict=True):
        for name, each in looks(rows).items():
            if line := select(rows, dataset=dataset, series=name):
                curve(ax, line, "recall", "precision", markevery=[2], **each)
        ax.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, None))
    caption = (
        "Precision over recall of all videos within a Hamming radius, which grows along a curve from 0 to "
        "all bits (the marker: 2); up and to the right is better. A query without any video within the "
        f"radius counts 0, so curves of long codes begin low. {means(rows)}"
    )
    return finish(figure, caption, legend_of(rows))


def draw_distances(rows: Sequence[Row]) -> Any:
    """A panel for every series: at which distances relevant and other pairs lie."""
    keys = distinct(rows, "dataset", "series")
    titles = [f"{dataset}: {counted(select(rows, dataset=dataset), name)}" for dataset, name in keys]
    figure, axes = panels(titles, 2)
    for ax, (dataset, name) in zip(axes, keys, strict=True):
        for kind, each in PAIRS.items():
            curve(ax, select(rows, dataset=dataset, series=name, kind=kind), "distance", "share", 100, **each)
        ax.set(xlabel="Hamming distance (bits)", ylabel="share of pairs (%)", ylim=(0, None))
    caption = (
        "Hamming distances of a query and a database video that share a label (relevant) and that do not "
        "(other), as shares of the pairs of their kind. The less the two overlap, the better the codes; half "
        f"bits are rounded up. {means(rows)}"
    )
    return finish(figure, caption, {f"{kind} pairs": each for kind, each in PAIRS.items()})


def draw_balance(rows: Sequence[Row]) -> Any:
    """A row for every run: the balance of every bit, and the matrix of correlations."""
    figure, axes = panels([title for title in run_titles(rows) for _ in range(2)], 2, 3)
    for (log,), left, right in zip(distinct(rows, "log"), axes[::2], axes[1::2], strict=True):
        shares = select(rows, log=log, quantity="share of +1")
        left.bar(column(shares, "bit"), [100 * row["value"] for row in shares], color=COLOURS[0])
        left.axhline(50, color="black", linestyle="--", linewidth=1)
        left.set(xlabel="bit", ylabel="videos with +1 (%)", ylim=(0, 100))
        matrix = np.eye(len(shares))
        for row in select(rows, log=log, quantity="correlation"):
            pair = [row["bit"], row["other_bit"]]
            matrix[pair, pair[::-1]] = np.nan if row["value"] is None else row["value"]
        right.grid(False)
        right.set_facecolor(GREY)
        image = right.imshow(matrix, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
        right.set(xlabel="bit", ylabel="bit")
        figure.colorbar(image, ax=right, label="absolute correlation")
    caption = (
        "Left: the share of the database's videos whose code has +1 at a bit (a 0 counts half); a balanced "
        "bit, at 50 % (dashed), tells most. Right: correlation of every two bits; the darker off the "
        "diagonal, the less they repeat each other. A bit that is the same in all videos has no correlation "
        "(grey)."
    )
    return finish(figure, caption, {})


def draw_map(rows: Sequence[Row]) -> Any:
    """A panel for every run: its codes in the plane, the most frequent classes in colour."""
    counts = Counter(each for each in column(rows, "class") if each is not None)
    frequent = [name for name, _ in counts.most_common(len(COLOURS))]
    legend = {name: look(place) | {"linestyle": ""} for place, name in enumerate(frequent)}
    groups = [([name], entry) for name, entry in legend.items()]
    if others := {row["class"] for row in rows} - set(frequent):
        legend["no class" if others == {None} else "other classes"] = other = {
            "color": GREY, "marker": ".", "linestyle": ""}  # fmt: skip
        groups.insert(0, (others, other))
    figure, axes = panels(run_titles(rows), 2, 3.6)
    for ax, (log,) in zip(axes, distinct(rows, "log"), strict=True):
        points = select(rows, log=log)
        for members, entry in groups:
            here = [row for row in points if row["class"] in members]
            ax.plot(column(here, "x"), column(here, "y"), alpha=0.8, rasterized=len(points) > 5000, **entry)
        first = points[0]
        for axis, share in ((ax.xaxis, first["x_share"]), (ax.yaxis, first["y_share"])):
            number = 1 if axis is ax.xaxis else 2
            pca = f"principal component {number} ({100 * (share or 0):.0f} % of the variance)"
            axis.set_label_text(pca if first["method"] == "pca" else f"t-SNE {number} (no unit)")
    caption = (
        f"Codes of the database in the plane. The {len(frequent)} most frequent classes have a colour and a "
        "marker; a video of several classes shows its first. Good codes put videos of a class together and "
        "classes apart, as far as two dimensions can show it."
    )
    return finish(figure, caption, legend)


def run_titles(rows: Sequence[Row]) -> list[str]:
    """What every run is, with the last two parts of its log's path."""
    runs = distinct(rows, "dataset", "series", "log")
    return [f"{dataset}: {name}, {'/'.join(Path(log).parts[-2:])}" for dataset, name, log in runs]


# ------------------------------------------------------------------------------------------------- figures


class Figure(NamedTuple):
    """What makes a figure."""

    needs: str  # of a log: "epochs"; of its result: "mAP", "by_radius" or "codes"
    numbers: Callable[[Sequence[Group]], list[Row]]
    picture: Callable[[Sequence[Row]], Any]  # of the numbers: matplotlib's figure
    averaged: bool = False  # over the runs of a series, of which a seed may count once
    most: int | None = None  # runs that it can show

    def lacks(self, log: Log) -> str:
        """Why a log cannot be shown; empty: it can.

        Raises:
            BadInput: the log is damaged.
        """
        if self.needs == "epochs":
            return "" if log.epochs or log.evaluations else "no finished epoch"
        reason = lacking(log, self.needs)
        if self.needs == "by_radius" and not reason:
            found, bits = log.result["by_radius"], log.result.get("bits")
            if not bits or any(len(found.get(key, ())) != bits + 1 for key in BY_RADIUS):
                raise BadInput(f"{log.path}: damaged: 'by_radius' is not of {bits} bits")
        return reason


FIGURES = {
    "losses": Figure("epochs", losses, draw_losses),
    "map": Figure("mAP", cuts, draw_cuts, averaged=True),
    "precision-recall": Figure("by_radius", radii, draw_radii, averaged=True),
    "distances": Figure("by_radius", distances, draw_distances, averaged=True),
    "bits": Figure("codes", balance, draw_balance, most=4),
    "codes": Figure("codes", code_map, draw_map, most=4),
}
