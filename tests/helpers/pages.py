"""The code blocks of README.md, CONTRIBUTING.md and docs/, with what each prints below it."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # also for tests/integrations, which come by ".."
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md"))),
)
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNS = ("python", "py", "sh")
WALKED = "docs/tutorial.md"  # one session in one folder: test_tutorial.py


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: name of the page, as in `PAGES`.
        kind: language of the fence. `python` runs as is; `py` is a fragment, for several ranks or
            with parts that the reader provides.
        code: contents of the block.
        printed: contents of the text block that directly follows, which it prints, or "".
        is_output: whether this is a text block that the block before it prints.
    """

    page: str
    kind: str
    code: str
    printed: str = ""
    is_output: bool = False

    @property
    def file(self) -> str:
        """The file name in the first line of a program to save."""
        found = re.match(r"# (\w+\.py)\n", self.code)
        return found[1] if found and self.kind == "python" else ""


def blocks(page: str) -> list[Block]:
    """The blocks of a page in order."""
    text = (ROOT / page).read_text()
    fences = list(FENCE.finditer(text))
    found: list[Block] = []
    for i, fence in enumerate(fences):
        kind, code = fence.groups()
        after = fences[i + 1] if i + 1 < len(fences) else None
        follows = after and after[1] == "text" and not text[fence.end() : after.start()].strip()
        printed = after[2] if follows and kind in RUNS else ""
        is_output = kind == "text" and bool(found) and found[-1].printed == code
        found.append(Block(page, kind, code, printed, is_output))
    return found


def of_kind(*kinds: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.kind in kinds]


def commands(block: Block) -> list[str]:
    """The lines of a `sh` block, without comments for the reader."""
    lines = (line.split("  #")[0].strip() for line in block.code.splitlines())
    return [line for line in lines if line]


def is_walked(block: Block, line: str) -> bool:
    """Whether `test_tutorial.py` runs this command, in the order of its page."""
    runs_here = line.startswith(("ladderize ", "torchrun --standalone "))
    return block.page == WALKED and runs_here


def steady(printed: str) -> str:
    """The output of a program, without seconds, versions and rounding errors, which vary."""
    printed = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    printed = re.sub(r"\d+\.\d+ s\b", "N s", printed)
    standard = r"the standard model's \S+"
    printed = re.sub(rf"worst error \S+ at [^;]+; {standard}", "worst error E", printed)
    printed = re.sub(r"compared, worst error \S+", "compared, worst error E", printed)
    return re.sub(r"(ladderize|torch) \d\S*", r"\1 V", printed)
