"""docs/tutorial.md runs from top to bottom: one session, one folder, every block in order.

Python runs in one module, programs are saved as the reader is told, and `ladderize` and `torchrun`
lines run as is, the latter only with `--deep`. The output of each block is compared with the page.
The page trains a model, so its measurements depend on a CPU's rounding: of blocks with a word of
MEASURES, only the words are compared, not the numbers.
"""

import re
import sys
import types
from pathlib import Path

import pytest
from helpers.pages import WALKED, Block, blocks, commands, is_walked, steady
from helpers.programs import run_program
from helpers.traced_once import traced_once
from test_docs_ranks import output_of

MEASURES = ("ladderize sensitivity", "ladderize heal", "ladderize evaluate", "\nanswers = ")


def words(printed: str) -> str:
    """The text without numbers, bars, rules and their spacing."""
    return " ".join(re.sub(r"-?[\d.,]+( %)?|[█─]", "", printed).split())


def compared(block: Block, printed: str) -> str:
    """What of it the page must have."""
    return words(printed) if any(map(block.code.__contains__, MEASURES)) else steady(printed)


class Walk:
    """A reader's session: a module for its Python, and a working directory for its commands."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.module = types.ModuleType("walked_page")
        self.line = 0

    def python(self, block: Block) -> None:
        code = compile("\n" * self.line + block.code, "tutorial.py", "exec")
        exec(code, vars(self.module))
        self.line += block.code.count("\n")

    def command(self, line: str) -> str:
        if line.startswith("ladderize "):
            return output_of(line, self.patch)
        ranks = re.fullmatch(r"torchrun --standalone --nproc-per-node (\d) (\S+)", line)
        assert ranks, line
        return run_program(self.folder / ranks[2], ranks=int(ranks[1]), folder=self.folder)


def test_the_tutorial_is_walked(tmp_path, capsys, monkeypatch, request):
    deep = request.config.getoption("--deep")
    told = [block for block in blocks(WALKED) if deep or not block.code.startswith("torchrun")]
    walk = Walk(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setitem(sys.modules, walk.module.__name__, walk.module)
    with traced_once():
        for block in told:
            printed = ""
            if block.file:
                (tmp_path / block.file).write_text(block.code)
            elif block.kind == "python":
                walk.python(block)
                printed = capsys.readouterr().out
            elif block.kind == "sh":
                lines = [line for line in commands(block) if is_walked(block, line)]
                printed = "".join(walk.command(line) for line in lines)
            if block.printed:
                assert compared(block, printed) == compared(block, block.printed)
