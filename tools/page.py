"""The page of ``tools.gallery`` as HTML: texts and pictures in, one self-contained file out.

Every text is escaped here, and the page's own policy forbids the browser to load or run anything else.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

# Right and wrong differ in colour, line and word. Both colour schemes have a contrast of 4.5 and more.
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --page: #fff; --text: #1b1b1b; --faint: #595959; --line: #c8c8c8;
  --right: #00598c; --wrong: #a63c00 }
@media (prefers-color-scheme: dark) {
  :root { --page: #161616; --text: #ececec; --faint: #a8a8a8; --line: #4a4a4a;
    --right: #6cbcf0; --wrong: #f79256 }
}
body { margin: 0 auto; max-width: 80rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 1rem/1.45 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: .2rem 0 }
h2 { font-size: 1.25rem; margin: 2rem 0 0; border-top: 1px solid var(--line); padding-top: 1rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem }
p, ul { margin: .4rem 0; max-width: 50rem }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .1rem .6rem; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child { text-align: left; padding-left: 0 }
.wide { overflow-x: auto }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.25rem, 1fr)); gap: .5rem;
  list-style: none; margin: 0; padding: 0; max-width: none }
.card { border: 3px solid var(--line); border-radius: .4rem; padding: .3rem;
  font-size: .8rem; line-height: 1.3; overflow-wrap: anywhere }
.card img { display: block; width: 100%; height: auto; border-radius: .2rem; margin-bottom: .2rem }
.card span { display: block }
.query { border: 3px double var(--text) }
.right { border: 3px solid var(--right) }
.wrong { border: 3px dashed var(--wrong) }
.right b { color: var(--right) }
.wrong b { color: var(--wrong) }
.faint { color: var(--faint) }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


@dataclass(frozen=True)
class Card:
    """A video: the query, or one of its neighbours."""

    kind: str  # query, right, wrong, or found: without labels
    mark: str  # the same in a word, for who sees no colour
    place: str  # rank and distance
    labels: str
    name: str
    picture: bytes | None = None  # JPEG

    def html(self) -> str:
        """An item of a row."""
        picture = ""
        if self.picture is not None:
            data = base64.b64encode(self.picture).decode()
            picture = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(self.name)}">'
        lines = (f"<span>{escape(each)}</span>" for each in (self.place, self.labels) if each)
        name = f'<span class="faint">{escape(self.name)}</span>'
        return (
            f'<li class="card {self.kind}">{picture}<b>{escape(self.mark)}</b> {" ".join(lines)} {name}</li>'
        )


@dataclass(frozen=True)
class Row:
    """A query and its neighbours."""

    title: str
    cards: Sequence[Card]

    def html(self) -> str:
        """A heading and the cards, which wrap."""
        cards = "\n".join(card.html() for card in self.cards)
        return f'<h3>{escape(self.title)}</h3>\n<ol class="row">\n{cards}\n</ol>'


@dataclass(frozen=True)
class Section:
    """Queries of one kind."""

    title: str
    text: str
    rows: Sequence[Row]

    def html(self) -> str:
        """A heading, what it holds, and the rows."""
        rows = "\n".join(row.html() for row in self.rows)
        return f"<section>\n<h2>{escape(self.title)}</h2>\n<p>{escape(self.text)}</p>\n{rows}\n</section>"


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table of texts, the header first; it scrolls by itself where the page is narrow."""
    header, *rows = lines
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}</table></div>'


def whole(
    title: str,
    facts: Sequence[str],
    numbers: Sequence[Sequence[str]],
    legend: Sequence[str],
    sections: Sequence[Section],
) -> str:
    """The page.

    Args:
        title: of the page.
        facts: what was run, paragraphs.
        numbers: a table, its header first; empty: none.
        legend: how to read the page, items.
        sections: what it shows.
    """
    parts = [
        *(f"<p>{escape(fact)}</p>" for fact in facts),
        *([table(numbers)] if numbers else []),
        "<ul>",
        *(f"<li>{escape(item)}</li>" for item in legend),
        "</ul>",
        *(section.html() for section in sections),
    ]
    return PAGE.substitute(title=escape(title), body="\n".join(parts))
