"""What the pages state: their commands run, their links lead somewhere, their figures have a source."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pages import anchors, blocks, dead_links, figures_without_source, runnable, wrong_figures
from synthetic import ROOT

import engine.demo
import run
from docs.generate import files
from engine.launch import launch
from formats.dataset import load_config

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
# What is put behind a command to make it quick, by the commands that get it.
SHORTER = {r"python run\.py(?!.*--(?:resume|stage tools\.))": "--max_iter 1 1"}
# Commands that this process can run, which has loaded torch already; a block with any other is left to bash.
COMMAND = re.compile(r"python (?:run\.py|-m tools\.\w+)(?: [^$&;|<>*()`]*)?")
pages = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder like the project's, as far as commands need it, with a quarter of the demo set."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "Json", folder / "Json")
    shutil.copy(ROOT / "run.py", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(engine.demo, "DEMO_VIDEOS", {"train": 240, "test": 120, "query": 30})
        engine.demo.make_demo(load_config("Json/demo.json"))
    return folder


@pytest.fixture
def work(demo, tmp_path, monkeypatch):
    """A copy of it, as the working folder."""
    shutil.copytree(demo, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run_block(block):
    """Run a fence of a page as it stands, but with shorter training."""
    text = textwrap.dedent(block.text)
    if block.language == "python":
        exec(compile(text, f"line {block.line}", "exec"), {"__name__": "__main__"})
        return
    text = text.replace("\\\n", " ")
    for command, option in SHORTER.items():
        text = re.sub(command, rf"\g<0> {option}", text)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    if not all(map(COMMAND.fullmatch, lines)):
        paths = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-exc", text], env=os.environ | paths, capture_output=True, text=True,
                              timeout=120)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return
    for line in lines:
        print("$", line)  # pytest shows it, and what follows, where the command fails
        _, what, *arguments = shlex.split(line, comments=True)
        if what == "run.py":
            status = launch(run.train_model, run.settings, arguments)
        else:
            status = importlib.import_module(arguments[0]).main(arguments[1:])
        assert status == 0, line


@pytest.mark.parametrize("path", [*filter(runnable, PAGES)], ids=lambda path: path.name)
def test_what_is_marked_runs(path, work):
    for block in runnable(path):
        assert "pip install" not in block.text
        run_block(block)


@pages
def test_links_lead_somewhere(path):
    assert dead_links(path) == []


@pages
def test_figures_are_those_of_their_source(path):
    assert wrong_figures(path, ROOT) == []


@pages
def test_comments_are_known(path):
    names = {name for block in blocks(path.read_text(encoding="utf-8")) for name, _ in block.marks}
    assert names <= {"runnable", "source"}


def test_the_readme_states_no_figure_without_a_source():
    assert figures_without_source(README) == []


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_pictures_are_made_by_a_script_or_a_command():
    makers = [path.read_text(encoding="utf-8") for path in ROOT.glob("docs/*.py")]
    makers += [
        block.text for path in PAGES for block in blocks(path.read_text(encoding="utf-8")) if block.is_code
    ]
    for picture in [*ROOT.glob("docs/*.png"), *ROOT.glob("docs/*.svg")]:
        assert any(picture.name in text for text in makers), picture


def test_generated_files_are_what_the_script_writes():
    for path, text in files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python -m docs.generate"
        if path.suffix == ".svg":
            ElementTree.fromstring(text)


PAGE = """# A page, `of_code` and (signs)

[itself](#a-page-of_code-and-signs), [its twin](#twin-1), [other](other.md#there), ![one](there.png)
[dead](gone.md), [elsewhere](#gone), [other](other.md#gone), ![two](gone.png)
[web](https://example.org/a?b#c), [plain](http://example.org), [no](https://host). `[code](is.not)`

## Twin

<!-- source: other.md -->
| ranks 45,600 codes | 3.5 s, bfloat16 |
| in `1234` bytes | 3.4 s |

## Twin

It takes 7 minutes on version 2.13.0.

- a score of 0.346

<!-- source: gone.md -->
Nothing.

The first 3 of 5 videos.

```
trained 0.7441
```

```bash
wait 5 s  # [no](link)
```
"""


class TestChecker:
    """The checks themselves, on a page with every fault."""

    @pytest.fixture
    def path(self, tmp_path):
        (tmp_path / "other.md").write_text("# There\n\n45,600 codes: 3.5 s\n\n```\n# Gone\n```\n")
        (tmp_path / "there.png").touch()
        (tmp_path / "page.md").write_text(PAGE)
        return tmp_path / "page.md"

    def test_dead_links(self, path):
        assert dead_links(path) == [
            "gone.md: no such file",
            "#gone: no such heading",
            "other.md#gone: no such heading",
            "gone.png: no such file",
            "http://example.org: no https address",
            "https://host: no https address",
        ]

    def test_figures(self, path, tmp_path):
        assert wrong_figures(path, tmp_path) == [
            "line 10: 3.4 is not in other.md",
            "line 20: no file gone.md",
        ]
        assert figures_without_source(path) == [
            "line 15: '7 minutes' has no source",
            "line 17: '0.346' has no source",
            "line 24: '0.7441' has no source",
        ]

    def test_anchors(self):
        assert anchors("# [A link](b.md), twice\n# A link, twice\n<a id='c'>\n\n```\n# no\n```\n") == {
            "a-link-twice", "a-link-twice-1"}  # fmt: skip

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("```python\nraise OSError('seen')\n```", "seen"),
            ("```\npython run.py --lr 0\n```", "python run.py --max_iter 1 1 --lr 0"),
            ("```bash\nfalse\ntrue\n```", "false"),
            (
                "```\necho python run.py \\\n  $PYTHONPATH; false\n```",
                f"python run.py --max_iter 1 1 +{ROOT}",
            ),
        ],
    )
    def test_commands_that_fail(self, work, text, error):
        (block,) = blocks(f"<!-- runnable -->\n{text}\n")
        with pytest.raises((AssertionError, OSError), match=error):
            run_block(block)
