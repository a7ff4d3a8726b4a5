"""A report for a notebook: small tables in the colors of the surrounding page."""

from collections.abc import Iterator
from html import escape

from ladderize.report.data import ReportData
from ladderize.report.present.lines import LEAVES_OUT, Gap, Row, Section, page_of

# The three colors are readable on white and on black; all others come from the page.
STYLE = """
.ladderize { font-size: 13px; line-height: 1.5; overflow-x: auto; }
.ladderize table { border-collapse: collapse; margin: 4px 0 4px 0; border: none; }
.ladderize th, .ladderize td { text-align: left; padding: 1px 14px 1px 0; border: none;
  background: transparent; white-space: nowrap; }
.ladderize tr { background: transparent; }
.ladderize th { font-weight: normal; opacity: .65; border-bottom: 1px solid rgba(128,128,128,.5); }
.ladderize .title { font-weight: bold; margin-top: 8px; }
.ladderize .dim { opacity: .65; }
.ladderize .moved { color: #2b7de9; font-weight: bold; }
.ladderize .warning { color: #b8720a; }
.ladderize .bad { color: #d1453b; }
.ladderize .line { margin-left: 1em; }
"""


def as_html(report: ReportData) -> str:
    """`report` as an HTML fragment; if layers are folded, a details element has every block."""
    short, full = page_of(report), page_of(report, full=True)
    lines = [
        f'<div class="ladderize"><style>{STYLE}</style>',
        _div("title", short.headline),
        _div("warning", short.warning),
    ]
    for part, whole in zip(short.parts, full.parts, strict=True):
        lines += _part(part, whole)
    return "\n".join([*lines, _div("dim", short.footer), "</div>"])


def _part(part: Section, whole: Section) -> Iterator[str]:
    yield _div("title bad" if part.is_bad else "title", part.title)
    if part.rows:
        yield _table(part)
    if len(part.rows) < len(whole.rows):
        yield f"<details><summary>every block</summary>{_table(whole)}</details>"
    for line in part.lines:
        yield _div("line", line)


def _table(part: Section) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in part.header)
    body = "\n".join(_row(row, LEAVES_OUT in part.header) for row in part.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _row(row: Row | Gap, says_what: bool) -> str:
    if isinstance(row, Gap):
        empty = 5 if says_what else 4
        return f'<tr><td colspan="{empty}"></td><td colspan="2">{_span("dim", row.text)}</td></tr>'
    moved = [f"{_span('dim', row.before)} → {_span('moved', row.after)}"] if row.after else []
    reads = ", ".join([*moved, *([_span("dim", row.also)] if row.also else [])])
    texts = [escape(text) for text in (row.block, row.layer, row.kind)]
    left_out = [escape(row.leaves_out)] if says_what else []
    cells = [*texts, reads, *left_out, escape(row.module), _span("dim", row.source)]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _span(kind: str, text: str) -> str:
    return f'<span class="{kind}">{escape(text)}</span>'


def _div(kind: str, text: str) -> str:
    return f'<div class="{kind}">{escape(text)}</div>'
