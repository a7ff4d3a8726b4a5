"""The page of error messages has every summary in the sources, and none that is not there.

A summary is a template: "{total} blocks were found:" stands on the page as "… blocks were found:".
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAISED = (
    "LadderError",
    "LadderWarning",
    "ReportedWarning",
    "DisagreementError",
    "ContradictionError",
    "CannotFitError",
)
GAP = "…"
CODE = re.compile(r"(`+) ?(.+?) ?\1")
# Summaries that are put together elsewhere, by the expression that stands for them.
PASSED_ON = {"error.summary": [], "refusal.summary": []}
VARIABLES = {
    "what": ["does not exist", "is a directory"],
    "summary + ':'": [f"The code that Inductor emitted {GAP} and {GAP}:"],
}
OPTIONS = {"option": ["layers", "blocks"]}

# Messages of others, and the tests in which they are raised.
OTHERS = {
    "'LADDERIZE' is not a valid DynamoBackend": "test_trainer.py",
    "Hard failure due to fullgraph=True": "test_delegates.py",
    "this model is a ladder, which is compiled by itself": "test_delegates.py",
}


def template(node: ast.expr, **known: str) -> str:
    """The text of a literal or f-string, with a gap for each value but of the variables `known`."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr), ast.unparse(node)
    return "".join(
        known.get(ast.unparse(v.value), GAP) if isinstance(v, ast.FormattedValue) else str(v.value)
        for v in node.values
    )


def summaries() -> Iterator[str]:
    """The summaries of all errors and warnings in the package."""
    for path in sorted((ROOT / "ladderize").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in RAISED:
                yield from spelled(node.args[0])


def spelled(node: ast.expr) -> list[str]:
    text = ast.unparse(node)
    if text in PASSED_ON:
        return PASSED_ON[text]
    if text in VARIABLES:
        return VARIABLES[text]
    names = [v.value.id for v in getattr(node, "values", []) if is_name(v)]
    for name in VARIABLES.keys() & set(names):
        return [template(node).replace(f"{GAP} {GAP}", f"{GAP} {v}") for v in VARIABLES[name]]
    for name in OPTIONS.keys() & set(names):
        return [template(node, **{name: value}) for value in OPTIONS[name]]
    return [template(node)]


def is_name(value: ast.expr) -> bool:
    return isinstance(value, ast.FormattedValue) and isinstance(value.value, ast.Name)


def messages() -> set[str]:
    """The messages that the page explains: in headings, and in the first column of tables."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    headings = re.findall(r"^### (.*)$", text, re.MULTILINE)
    cells = re.findall(r"^\| (`.*?) \| ", text, re.MULTILINE)
    return {found[1] for part in [*headings, *cells] for found in CODE.findall(part)}


def words(message: str) -> str:
    """Without a last full stop, and with one gap where several values stand side by side."""
    return re.sub(rf"{GAP}+", GAP, message).rstrip(".")


def test_every_summary_is_explained():
    explained = {words(message) for message in messages()}
    missing = {s for s in map(words, summaries()) if s not in explained}
    assert not missing, "docs/troubleshooting.md says nothing of these"


def test_every_message_on_the_page_is_in_the_sources():
    known = {words(summary) for summary in (*summaries(), *OTHERS)}
    strange = {m for m in map(words, messages()) if m not in known}
    assert not strange, "no LadderError or LadderWarning says these"


def test_every_message_of_others_is_raised_in_a_test():
    for message, name in OTHERS.items():
        assert message in messages()
        assert message in (ROOT / "tests" / "frontends" / name).read_text()
