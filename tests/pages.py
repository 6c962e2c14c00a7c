"""A page of Markdown as its tests see it: blocks, links, anchors, and the sources of figures."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

FENCE = re.compile(r"```(\w*)$")
COMMENT = re.compile(r"<!-- (\w+)(?:: (.+?))? -->$")
CODE = re.compile(r"`[^`\n]+`")
# [text](target), ![text](target), [name]: target, and HTML's src and href
LINK = re.compile(r'\]\(([^()\s]+)(?: "[^"]*")?\)|^\[[^\]]+\]: (\S+)|(?:src|href|srcset)="([^"]*)"', re.M)
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w.]*\w)")
UNITS = r"s|ms|seconds|minutes|hours|[kMGT]i?B|videos/s|times|%"
# Seconds, sizes, shares, speeds, and scores such as 0.346
MEASURED = re.compile(rf"\d[\d.,]* ?(?:{UNITS})(?!\w)|(?<![\d.])0\.\d\d+")


@dataclass
class Block:
    """Lines without an empty one between them, or a fence: a paragraph, a list, a table, code."""

    line: int  # of the page, from 1
    text: str
    language: str | None = None  # None: no fence
    marks: tuple[tuple[str, str], ...] = ()  # of the comments on the lines above, like ("runnable", "")

    def marked(self, name: str) -> list[str]:
        """What the comments of a name say."""
        return [content for mark, content in self.marks if mark == name]

    @property
    def is_code(self) -> bool:
        """Whether it is a fence."""
        return self.language is not None

    @property
    def is_heading(self) -> bool:
        """Whether it is the title of a section."""
        return not self.is_code and self.text.startswith("#")


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order."""
    found, marks, open_block = [], (), None
    for number, line in enumerate(page.splitlines(), 1):
        fenced = open_block is not None and open_block.is_code
        fence, comment = FENCE.match(line.strip()), COMMENT.match(line.strip())
        if fenced and fence:
            open_block = None
        elif fenced:
            open_block.text += line + "\n"
        elif not line.strip():
            open_block = None
        elif comment:
            open_block = None
            marks += ((comment[1], comment[2] or ""),)
        elif fence or open_block is None or line.startswith("#"):
            open_block = Block(number, "" if fence else line + "\n", fence[1] if fence else None, marks)
            marks = ()
            found.append(open_block)
            if open_block.is_heading:
                open_block = None
        else:
            open_block.text += line + "\n"
    return found


def visible(block: Block) -> str:
    """The text of a block without the code inside its lines."""
    return block.text if block.is_code else CODE.sub("``", block.text)


def prose(page: str) -> str:
    """A page without its code."""
    return "\n".join(visible(block) for block in blocks(page) if not block.is_code)


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them, and those of HTML."""
    found, counts = set(re.findall(r'<a (?:id|name)="([^"]+)"', page)), {}
    for block in blocks(page):
        if block.is_heading:
            title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", block.text.lstrip("#").strip())
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            number = counts[slug] = counts.get(slug, -1) + 1
            found.add(f"{slug}-{number}" if number else slug)
    return found


def dead_links(path: Path) -> list[str]:
    """What the links and pictures of a page lead to in vain; those of the web are looked at, not followed."""
    page = path.read_text(encoding="utf-8")
    dead = []
    for target in map("".join, LINK.findall(prose(page))):
        url = urlsplit(target)
        if url.scheme or target.startswith("//"):
            if url.scheme != "https" or not re.fullmatch(r"[\w-]+(\.[\w-]+)+", url.netloc):
                dead.append(f"{target}: no https address")
            continue
        file = path.parent / url.path if url.path else path
        if not file.exists():
            dead.append(f"{target}: no such file")
        elif url.fragment and url.fragment not in anchors(file.read_text(encoding="utf-8")):
            dead.append(f"{target}: no such heading")
    return dead


def numbers(text: str) -> list[str]:
    """The numbers of a text, 45,600 as 45600; none in a name such as bfloat16 or a version such as 2.13.0."""
    return [number.replace(",", "") for number in NUMBER.findall(text)]


def wrong_figures(path: Path, root: Path) -> list[str]:
    """The numbers of the blocks with a comment ``source`` that none of the files it names has."""
    wrong = []
    for block in blocks(path.read_text(encoding="utf-8")):
        for names in block.marked("source"):
            known = set()
            for name in names.split(", "):
                if (root / name).is_file():
                    known |= set(numbers((root / name).read_text(encoding="utf-8")))
                else:
                    wrong.append(f"line {block.line}: no file {name}")
            unknown = [number for number in numbers(visible(block)) if number not in known]
            wrong += [f"line {block.line}: {number} is not in {names}" for number in unknown]
    return wrong


def figures_without_source(path: Path) -> list[str]:
    """The blocks that hold something measured and name no source; commands and programs are not looked at."""
    found = []
    for block in blocks(path.read_text(encoding="utf-8")):
        figure = None if block.language or block.marked("source") else MEASURED.search(visible(block))
        if figure:
            found.append(f"line {block.line}: {figure[0]!r} has no source")
    return found


def runnable(path: Path) -> list[Block]:
    """The fences of a page that are marked so."""
    page = blocks(path.read_text(encoding="utf-8"))
    return [block for block in page if block.is_code and "runnable" in dict(block.marks)]
