"""A table as text for a README or a paper: cells in, Markdown or LaTeX out."""

from collections.abc import Sequence

MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\|<*`"})
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
)


def markdown(caption: str, lines: Sequence[Sequence[str]], n_texts: int) -> str:
    """A table in Markdown below its caption; arguments as of `latex`."""
    header, *rows = ([cell.translate(MARKDOWN) for cell in line] for line in lines)
    rule = ["---" if column < n_texts else "---:" for column in range(len(header))]
    body = "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *rows))
    return f"{caption.translate(MARKDOWN)}\n\n{body}"


def latex(caption: str, lines: Sequence[Sequence[str]], n_texts: int) -> str:
    r"""A table in LaTeX, which needs ``\usepackage{booktabs}``.

    Args:
        caption: above the table.
        lines: of cells, the header first.
        n_texts: how many columns are text, to be set to the left; those after them are numbers.

    Returns:
        The table, everything in it escaped.
    """
    header, *rows = (" & ".join(cell.translate(LATEX) for cell in line) + r" \\" for line in lines)
    kinds = "l" * n_texts + "r" * (len(lines[0]) - n_texts)
    return "\n".join((
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption.translate(LATEX)}}}",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        header,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ))  # fmt: skip
