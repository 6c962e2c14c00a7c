"""The house: a file imports only from below its floor or from its own room, and nothing goes in a circle."""

import ast
import graphlib
from pathlib import Path

import pytest
from synthetic import ROOT

# The rest, floor 4: stages of all systems; a system's model.py is on floor 2.
FLOORS = {"formats": 0, "metrics.py": 1, "layers.py": 1, "data.py": 2, "model.py": 2, "cluster.py": 2,
          "engine": 3, "tools": 4, "run.py": 5, "bench": 5, "docs": 6}  # fmt: skip
FILES = sorted(
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("[!.]*/*.py"))
    if path.parent.name != "tests"
)
NETWORKS = [path for path in FILES if path.name == "model.py"]


def floor_of(path: Path) -> int:
    """Counted from the ground."""
    return FLOORS.get(path.parts[0], 2 if path.name == "model.py" else 4)


def imports(path: Path) -> set[Path]:
    """The files of the project that a file imports."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {Path(f"{name.replace('.', '/')}.py") for name in names}
    return found & set(FILES) - {path}


def test_the_imports_are_seen():
    assert {Path("model.py"), Path("engine/loop.py"), Path("formats/files.py")} <= imports(Path("train.py"))
    assert {Path("bth/model.py"), Path("engine/systems.py")} <= imports(Path("bth/settings.py"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_downwards(path):
    for other in imports(path):
        own_room = other.parent == path.parent and floor_of(other) == floor_of(path)
        assert floor_of(other) < floor_of(path) or own_room, f"{path} imports {other}"


def test_nothing_goes_in_a_circle():
    graphlib.TopologicalSorter({path: imports(path) for path in FILES}).prepare()


@pytest.mark.parametrize("path", NETWORKS, ids=str)
def test_networks_need_the_ground_floor_alone(path):
    assert all(floor_of(other) < 2 for other in imports(path))


def test_the_engine_names_no_system():
    systems = [path.parent.name for path in NETWORKS if path.parent.name]
    assert systems
    for path in (ROOT / "engine").glob("*.py"):
        assert not [name for name in systems if name in path.read_text().lower()], path


def test_no_file_is_a_drawer():
    long = {path: len((ROOT / path).read_text().splitlines()) for path in FILES if path != Path("model.py")}
    assert max(long.values()) <= 420, max(long, key=long.get)
