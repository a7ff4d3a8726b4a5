"""The Python of the pages runs and prints what the page shows, and no block is left out.

`py` fragments and commands: `test_docs_ranks.py`, `test_docs_commands.py`. The tutorial, whose
Python and commands share a folder: `test_tutorial.py`.
"""

import re
import sys
import types

import pytest
from families_table import read_rows, table
from helpers.pages import PAGES, ROOT, WALKED, Block, blocks, of_kind, steady
from hypothesis import settings
from test_troubleshooting import summaries, words

import ladderize
from ladderize import quality, testing
from ladderize.tools.doctor.examine import TESTED

settings.register_profile("same examples", derandomize=True, database=None)
KINDS = {"python", "py", "sh", "text"}
# Text blocks that show no output of the block before, by how they begin: diagrams, and excerpts
# of what a model too big for this page prints.
ILLUSTRATIONS = {
    ("docs/multi-node.md", "$ sudo PYTHON=.venv/bin/python bench/multi_node.sh"),
    ("docs/design.md", "Dynamo or export graph"),
    ("docs/design.md", "front end ── Rewriting"),
    ("docs/design.md", "tools      →"),
    ("docs/design.md", "before   n = norm(x0)"),
    ("docs/design.md", "flat   h0"),
    ("docs/emulation.md", "launched        peers"),
    ("docs/experts.md", "standard   attention(l)"),
    ("docs/experts.md", "# combine of layer 0"),
    ("docs/ladder.md", "standard   x[i+1]"),
    ("docs/ladder.md", "standard    x1 = x0"),
    ("docs/ladder.md", "layer of experts     x1 = x0"),
    ("docs/planner.md", "h100x8-nvlink: 8 ranks"),
    ("docs/report.md", "stream 1: 12 blocks of [2, 7, 32]"),
    ("docs/tensorrt.md", "ladder graph"),
    ("docs/sharding.md", "branch: layers.{0-1}.self_attn.q_proj.weight: 7"),
    ("docs/sharding.md", "order, ends       the choices of all tokens"),
    ("docs/sharding.md", "w [128, 64] of int8 [128, 64]"),
    ("docs/sharding.md", "model.layers.0.mlp.down_proj.weight: aten.amin"),
    ("docs/sharding.md", "w [64, 32] of GPTQ: qweight int32 [8, 32]"),
    ("docs/sharding.md", "layers.1.up.packed: no sharding rule for"),
}


def runnable(page: str) -> list[Block]:
    """The blocks to paste into one session; programs to save are run by their command."""
    return [block for block in blocks(page) if block.kind == "python" and not block.file]


@pytest.fixture
def same_examples():
    """Every run draws the same examples, as `helpers.few_examples` has it."""
    settings.load_profile("same examples")
    yield
    settings.load_profile("default")


@pytest.mark.usefixtures("same_examples")
@pytest.mark.parametrize("page", [page for page in PAGES if page != WALKED and runnable(page)])
def test_the_code_of_a_page_runs(page, capsys, monkeypatch):
    """All blocks of a page in one module, in order, as if they stood in one file."""
    name = page.removeprefix("docs/").removesuffix(".md")
    module = types.ModuleType(f"page_{name}")  # a page has the name of a package
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("COLUMNS", "100")  # of the reader's terminal
    line = 0
    for block in runnable(page):
        exec(compile("\n" * line + block.code, f"{name}.py", "exec"), vars(module))
        line += block.code.count("\n")
        if block.printed:
            assert steady(capsys.readouterr().out) == steady(block.printed)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_known_kind(page):
    assert {block.kind for block in blocks(page)} <= KINDS


def is_message(block: Block, forms: list[str]) -> bool:
    """Whether the text begins with the summary of a `LadderError`; `forms` match them all."""
    first = words(block.code.splitlines()[0])
    return any(re.fullmatch(form, first) for form in forms)


def test_every_text_is_output_a_message_or_an_illustration():
    forms = [re.escape(words(summary)).replace("…", ".+") for summary in summaries()]
    others = [block for block in of_kind("text") if not block.is_output]
    texts = [block for block in others if not is_message(block, forms)]
    unknown = [b for b in texts if not any(shows(b, each) for each in ILLUSTRATIONS)]
    assert not unknown
    assert len(texts) == len(ILLUSTRATIONS)


def shows(block: Block, illustration: tuple[str, str]) -> bool:
    page, beginning = illustration
    return block.page == page and block.code.startswith(beginning)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page):
    named = re.findall(
        r"\b(?:tests|bench|examples|ladderize)/[\w/]+\.py\b", (ROOT / page).read_text()
    )
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "reference.md").read_text()
    here = set(re.findall(r"^::: (\S+)", page, re.MULTILINE))
    rooms = {"__version__", "parallel_ops", "quality", "testing"}
    public = {f"ladderize.{name}" for name in ladderize.__all__ if name not in rooms}
    public |= {f"ladderize.testing.{name}" for name in testing.__all__}
    public |= {f"ladderize.quality.{name}" for name in quality.__all__}
    assert public <= here


def test_the_table_of_families_is_the_measured_one():
    rows = read_rows(ROOT / "bench/results/sharded_families.json")
    assert table(rows) in (ROOT / "docs/sharding.md").read_text()
    measured = [row.values["difference"] for row in rows]
    assert all(float(found) <= 1e-4 for found in measured if found is not None)


def test_the_supported_versions_of_torch_are_those_of_the_doctor():
    page = (ROOT / "docs" / "versions.md").read_text()
    rows = re.findall(r"^\| (\d+)\.(\d+) \| (.+) \|$", page, re.MULTILINE)
    assert {(int(major), int(minor)): how for major, minor, how in rows} == TESTED
