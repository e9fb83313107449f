"""Print figures of the source tree: `python .ci/figures.py [FOLDER]`, of this checkout or of another."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import grimp
import networkx

SAME_LINES = 6  # of a run that stands in two places
PACKAGES = ("autocompress", "search_spaces")


def definitions(tree: ast.AST, public: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Functions and classes of a module, and whether each is public."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            seen = public and not node.name.startswith("_")
            yield node, seen
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, seen)


def circles(root: Path) -> int:
    """Groups of modules that import each other, also inside folders."""
    sys.path.insert(0, str(root))
    graph = grimp.build_graph(*PACKAGES, include_external_packages=False, cache_dir=None)
    imports = networkx.DiGraph(
        (importer, imported)
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    )
    return sum(len(component) > 1 for component in networkx.strongly_connected_components(imports))


def main() -> None:
    root = Path(sys.argv[1] if sys.argv[1:] else ".").resolve()
    files = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    places: dict[tuple[str, ...], set[Path]] = defaultdict(set)
    lengths: list[tuple[int, str]] = []
    documented = public = repeated = 0
    for path in files:
        text = path.read_text()
        for node, is_public in definitions(ast.parse(text)):
            if not isinstance(node, ast.ClassDef):
                lengths.append((node.end_lineno - node.lineno + 1, f"{path.relative_to(root)}:{node.name}"))
            public += is_public
            documented += is_public and ast.get_docstring(node) is not None
        lines = [stripped for line in text.splitlines() if len(stripped := line.strip()) > 3]
        lines = [line for line in lines if not line.startswith(("import ", "from ", "#"))]
        for start in range(len(lines) - SAME_LINES + 1):
            run = tuple(lines[start : start + SAME_LINES])
            repeated += bool(places[run] - {path})
            places[run].add(path)
    lengths.sort(reverse=True)
    print(f"files                      {len(files)}")
    print(f"lines                      {sum(len(path.read_text().splitlines()) for path in files)}")
    print(f"files of 240 to 250 lines  {sum(240 <= len(p.read_text().splitlines()) <= 250 for p in files)}")
    print(f"longest function           {lengths[0][0]} lines ({lengths[0][1]})")
    print(f"functions over 40 lines    {sum(length > 40 for length, _ in lengths)} of {len(lengths)}")
    print(f"public with docstring      {documented} of {public} ({documented / public:.0%})")
    print(f"circles of imports         {circles(root)}")
    print(f"runs of {SAME_LINES} lines met before  {repeated}")


if __name__ == "__main__":
    main()
