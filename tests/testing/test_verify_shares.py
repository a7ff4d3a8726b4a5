"""`ladderize.verify` shares with the rewriter exactly what it lists."""

import ast
from pathlib import Path

import ladderize.testing.verify as verify
from ladderize.passes.before_autograd import STANDARDIZE
from ladderize.testing.verify.verdict import SHARED, Verification

ROOT = Path(__file__).parents[2]
# The runner of a pass, not a pass.
MACHINERY = {"apply_pass", "standardize"}
# They neither find, change nor read anything: names, messages, options, torch's private parts.
PLAIN = {"compat", "config", "errors", "report", "testing"}


def imports():
    """Module and name of each import of `verify`."""
    for path in Path(verify.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("ladderize."):
                yield from ((node.module, alias.name) for alias in node.names)


def test_the_parts_that_are_shared_are_named():
    used = {name for module, name in imports() if module.startswith("ladderize.passes")}
    passes = used - MACHINERY | {step.name for step in STANDARDIZE}
    rooms = {module.split(".")[1] for module, _ in imports()} - PLAIN - {"passes"}
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    printed = str(Verification("", ()))
    assert passes >= {"InlineRegions", "DropCasts", "Functionalize", "SpellSums", "layout_steps"}
    for name in (*passes, *(f"ladderize.{room}" for room in rooms)):
        assert name in " ".join(SHARED) and name in page, name
    assert all(name in verify.verify.__doc__ for name in passes)
    assert all(" ".join(part.split()) in " ".join(printed.split()) for part in SHARED)
