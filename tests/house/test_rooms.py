"""The plan of the rooms: arrows in one direction, unique names, private torch names in compat."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

from house.rooms import LAYERS, PACKAGE, PAGE, module_graph, page_with, picture, room_graph, room_of

LEVEL = {room: level for level, layer in enumerate(LAYERS) for room in layer}
MAX_NAMES = 14
PRIVATE = re.compile(r"torch\._(?!_|dynamo(\.(reset|config)|$))\w")
# Files of one name that are about one thing: a verb of the command line and what it runs, Inductor
# and its private names.
SHARED_NAMES = {"explain.py", "rewrite.py", "plan.py", "inductor.py", "__init__.py"}


@cache
def modules() -> "nx.DiGraph[str]":
    return module_graph()


def sources() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}


def test_no_arrow_points_upward() -> None:
    rooms = room_graph(modules())
    assert set(rooms) == set(LEVEL)
    upward = [(above, below) for above, below in rooms.edges if LEVEL[above] >= LEVEL[below]]
    assert upward == []


def test_nothing_in_a_room_imports_the_package_itself() -> None:
    found = [name for name, imported in modules().edges if imported == "ladderize"]
    assert [name for name in found if room_of(name) not in ("", "tools")] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    inside = modules().subgraph(node for node in modules() if node != "ladderize")
    assert [sorted(c) for c in nx.strongly_connected_components(inside) if len(c) > 1] == []


def test_the_design_page_shows_the_arrows_as_they_are() -> None:
    page = PAGE.read_text("utf-8")
    assert page == page_with(picture(room_graph(modules())), page), (
        "run: python tests/house/rooms.py --write"
    )


def test_the_top_of_the_package_is_short() -> None:
    """Rooms and modules: `py.typed` and the package itself are neither."""
    others = {"__pycache__", "__init__.py", "py.typed"}
    names = [path.name for path in PACKAGE.iterdir() if path.name not in others]
    assert len(names) <= MAX_NAMES, sorted(names)


def test_a_class_has_a_name_of_its_own() -> None:
    homes = defaultdict(set)
    for path, tree in sources().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].add(str(path.relative_to(PACKAGE)))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_a_file_has_a_name_of_its_own() -> None:
    homes = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        homes[path.name].add(str(path.relative_to(PACKAGE)))
    twice = {name: places for name, places in homes.items() if len(places) > 1}
    assert {n: places for n, places in twice.items() if n not in SHARED_NAMES} == {}


def test_private_names_of_torch_are_in_compat() -> None:
    """Attributes and imports; `torch._dynamo.reset` and `.config` are torch's documented way."""
    found = []
    for path, tree in sources().items():
        if "compat" in path.parts:
            continue
        for node in ast.walk(tree):
            text = ""
            if isinstance(node, ast.ImportFrom):
                text = node.module or ""
            elif isinstance(node, ast.Attribute):
                text = ast.unparse(node)
            if PRIVATE.match(text) or text.endswith("._cdata"):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {text}")
    assert found == []


# Module-level objects that change. `torch._dynamo.reset()` clears three; the others belong
# to a model, its parameters or its paged cache and live as long as these.
STATE = {
    "frontends/backend.py _session",
    "report/publish.py _last",
    "sharding/plan_checks.py _told",
    "frontends/compile.py _compiled",
    "frontends/checkpoints/conversions.py _conversions",
    "frontends/mesh/release_parameters.py _hooks",
    "frontends/mesh/earlier_plans.py _noted",
    "frontends/mesh/local_caches.py _layouts",
    "frontends/mesh/local_parts.py PARTS",
    "compat/paged_cache.py _caches",
}
CHANGING = ("Counter", "defaultdict", "dict", "list", "set", "Weak", "_Session", "Parts", "Cache")


def test_the_state_of_the_process_is_known() -> None:
    found = set()
    for path, tree in sources().items():
        place = str(path.relative_to(PACKAGE))
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if ast.unparse(node.value.func).split(".")[-1].startswith(CHANGING):
                    found.add(f"{place} {ast.unparse(target)}")
        found |= {
            f"{place} {name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Global)
            for name in node.names
        }
    assert found == STATE


@pytest.mark.parametrize("link", ["passes", "backends"])
def test_the_links_at_the_top_of_the_repository(link: str) -> None:
    at = PACKAGE.parent / link
    assert at.is_symlink() and at.resolve() == PACKAGE / link
