"""The Python of the pages runs, and prints what the page says below it."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
PAGES = ["testing", "programs", "training", "report", "generate", "parallelize", "plot"]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks of a page in one namespace, in order."""
    names: dict[str, object] = {"__name__": page}
    blocks = BLOCK.findall((DOCS / f"{page}.md").read_text())
    assert blocks
    for code, printed in blocks:
        exec(compile(code, f"{page}.md", "exec"), names)
        if printed:
            assert capsys.readouterr().out.strip() == printed.strip()
