"""What `ladderize.verify` shares with the rewriter is what its documentation says."""

import ast
from pathlib import Path

import ladderize.testing.verify as verify
from ladderize.passes.before_autograd import STANDARDIZE

ROOT = Path(__file__).parents[2]
# The runner of a pass, not a pass.
MACHINERY = {"apply_pass", "standardize"}


def test_the_passes_that_take_part_are_named():
    used = set()
    for path in Path(verify.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("ladderize.passes"):
                used |= {alias.name for alias in node.names}
    named = used - MACHINERY | {step.name for step in STANDARDIZE}
    assert named == {
        *("InlineRegions", "DropCasts", "Functionalize", "SpellSums", "ReduceBranches"),
        "SplitSums",
        "layout_steps",
    }
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    for text in (page, verify.verify.__doc__):
        assert all(name in text for name in named)
    assert "None of the passes takes part" not in page
