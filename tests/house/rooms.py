"""Which room of the package imports which, read from the sources.

    python tests/house/rooms.py            print the arrows between the rooms
    python tests/house/rooms.py --write    put them into docs/design.md

A room is a folder or a module at the top of `ladderize/`. Rooms stand in layers: a room imports
only from layers below its own, and a layer that holds several rooms has no arrows inside.
"""

import argparse
import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ladderize"
PAGE = ROOT / "docs" / "design.md"
LAYERS = (
    ("tools",),
    ("quality", "integrations"),
    ("testing",),
    ("frontends",),
    ("report",),
    ("backends",),
    ("passes",),
    ("sharding",),
    ("streams",),
    ("graph",),
    ("config",),
    ("compat",),
    ("errors",),
)
"""From the top down. The package itself, `ladderize/__init__.py`, stands above all of them."""


def module_graph(package: Path = PACKAGE) -> "nx.DiGraph[str]":
    """Every module of the package, with an edge to each module that it imports, wherever it does.

    Names that a package re-exports count as imports of the package.
    """
    files = {_module_name(path, package): path for path in sorted(package.rglob("*.py"))}
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(files)
    for name, path in files.items():
        for imported in _imports(ast.parse(path.read_text("utf-8")), files, package.name):
            graph.add_edge(name, imported)
    return graph


def _module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.Module, known: Mapping[str, Path], package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module in known:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found = full if full in known else node.module
                if found != package:  # `from ladderize import LadderError`: see `_public`
                    yield found
                else:
                    yield _public(alias.name, known, package)


def _public(name: str, known: Mapping[str, Path], package: str) -> str:
    """The module behind a public name of the package: `ladderize.explain` is a front end's."""
    homes = re.findall(r'"(\w+)": "([\w.]+)"', known[package].read_text("utf-8"))
    return f"{package}.{dict(homes).get(name, name)}"


def room_of(module: str) -> str:
    """`ladderize.graph.ops` stands in the room `graph`; the package itself in ""."""
    return ".".join(module.split(".")[1:2])


def room_graph(modules: "nx.DiGraph[str]") -> "nx.DiGraph[str]":
    """The rooms, with an edge to each room that one imports from."""
    rooms: nx.DiGraph[str] = nx.DiGraph()
    for importing, imported in modules.edges:
        pair = room_of(importing), room_of(imported)
        if pair[0] != pair[1] and "" not in pair:
            rooms.add_edge(*pair)
    return rooms


def picture(rooms: "nx.DiGraph[str]") -> str:
    """The arrows as text: a line for each room, from the top layer down."""
    order = [room for layer in LAYERS for room in layer]
    lines = [
        f"{room:<10} → {' '.join(sorted(rooms.successors(room), key=order.index)) or '—'}"
        for room in order
        if room in rooms
    ]
    return "\n".join(lines)


def page_with(text: str, page: str) -> str:
    """`page` with the picture between its two marks."""
    start, end = "<!-- rooms: tests/house/rooms.py --write -->\n", "<!-- end of rooms -->"
    before, rest = page.split(start)
    return f"{before}{start}```text\n{text}\n```\n{end}{rest.split(end)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The arrows between the rooms of ladderize.")
    parser.add_argument("--write", action="store_true", help="put them into docs/design.md")
    text = picture(room_graph(module_graph()))
    if parser.parse_args().write:
        PAGE.write_text(page_with(text, PAGE.read_text("utf-8")), "utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
