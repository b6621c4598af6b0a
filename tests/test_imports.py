"""One direction of flow: no module imports, at its top or inside a function, one that comes back to it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in (ROOT / "mmjax").rglob("*.py")
}


def imported(file):
    """The modules of mmjax that a file imports; not those for its type hints alone."""
    tree = ast.parse(file.read_text())
    hints = {
        id(node)
        for found in ast.walk(tree)
        if isinstance(found, ast.If) and ast.unparse(found.test) == "TYPE_CHECKING"
        for node in ast.walk(found)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in hints:
            yield from (n if (n := f"{node.module}.{name.name}") in MODULES else node.module for name in node.names)


def test_no_import_comes_back():
    graph = {name: set(imported(file)) & MODULES.keys() - {name} for name, file in MODULES.items()}
    assert sum(map(len, graph.values())) > len(MODULES)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
