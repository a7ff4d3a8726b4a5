"""An identity for compile caches: the sources of a module and of everything that it imports.

Inductor's cache returns graphs of earlier runs. After an upgrade of ladderize it must not, so the
identity of a graph pass covers every file that can edit the graph. The files are found by following
all import statements.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@cache
def digest_of_sources(module: str, package: Path = PACKAGE) -> str:
    """SHA-256 of the sources behind `module`, computed once per process.

    Args:
        module: name of a module, such as `ladderize.backends.inductor`.
        package: folder of the package.
    """
    digest = hashlib.sha256()
    for path in files_behind(module, package):
        digest.update(str(path.relative_to(package)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def files_behind(module: str, package: Path = PACKAGE) -> list[Path]:
    """The files of `module` and of everything that it imports from the package, sorted."""
    found: set[Path] = set()
    waiting = {module}
    while waiting:
        path = _file_of(waiting.pop(), package)
        if path is not None and path not in found:
            found.add(path)
            waiting |= _imported(path.read_bytes(), package.name)
    return sorted(found)


def _file_of(module: str, package: Path) -> Path | None:
    """The file of a module; None if `module` is a name inside one, such as a class."""
    path = package.parent.joinpath(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


@cache
def _imported(source: bytes, package: str) -> frozenset[str]:
    """The names that a file imports from the package: modules, and names in them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    inside = {name for name in found if name.split(".")[0] == package}
    parents = {
        ".".join(name.split(".")[:i]) for name in inside for i in range(2, name.count(".") + 1)
    }
    return frozenset(inside | parents) - {
        package
    }  # the package itself imports the front ends, lazily
