"""Presentation of a report: in a terminal, in a notebook, and in the README."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from helpers.graphs import Broken, Residual
from rich.console import Console

import ladderize
from ladderize.report import BlockReport, GraphReport, Report, SegmentReport, StreamReport
from ladderize.report.present.tables import plain_table

ROOT = Path(__file__).parents[2]
WARNING = "A ladder computes another function: converted weights must be trained or healed."


def block(index, layer, kind="MLP", stale=1):
    return BlockReport(
        graph=0,
        stream=0,
        segment=0,
        index=index,
        layer=layer,
        module="net" if layer is None else f"layers.{layer}.part",
        kind=kind,
        source="/home/net.py:7",
        reads_before=(f"x{index}",),
        reads_after=(f"x{max(index - stale, 0)}",),
        is_converted=True,
        num_nodes=5,
    )


def report_of(blocks):
    segment = SegmentReport(0, 0, len(blocks) - 1, (2, "s0", 8))
    return Report((GraphReport(0, "forward", "explained", (StreamReport(0, blocks, (segment,)),)),))


def cells(report, full=False):
    """The lines of the table, each as the list of its words."""
    lines = report.table(full, width=100).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("──")) + 1
    return [line.split() for line in lines[start : lines.index("", start)]]


def test_one_block_a_line():
    report = report_of((block(0, 0), block(1, 1)))
    assert cells(report) == [
        ["0", "0", "MLP", "x0", "layers.0.part", "net.py:7"],
        ["1", "1", "MLP", "x1", "→", "x0", "layers.1.part", "net.py:7"],
    ]
    text = str(report)
    assert text.splitlines()[:2] == [
        "2 blocks in 1 stream, 1 would read stale; nothing is compiled",
        WARNING,
    ]
    assert "stream 0: 2 blocks of [2, s0, 8]" in text


@pytest.mark.parametrize(
    ("layers", "shown", "gap"),
    [
        (80, 2, "layers 2-79: as layer 1"),
        (4, 2, "layers 2-3: as layer 1"),
        (3, 3, None),
    ],
)
def test_layers_that_are_alike_are_shown_once(layers, shown, gap):
    report = report_of(tuple(block(2 * i + j, i) for i in range(layers) for j in range(2)))
    rows = cells(report)
    assert len(rows) == 2 * shown + bool(gap)
    assert gap is None or " ".join(rows[-1]) == gap
    assert len(cells(report, full=True)) == 2 * layers


def test_patterns_of_several_layers():
    kinds = ["MLP", "MoE", "other"]
    report = report_of(tuple(block(i, i, kinds[i % 3]) for i in range(31)))
    rows = cells(report)
    assert [row[2] for row in rows[:4]] == ["MLP", "MoE", "other", "MLP"], "the first reads x0"
    assert " ".join(rows[4]) == "layers 4-30: as layers 1-3 in turn"


def test_what_differs_is_shown():
    blocks = [block(i, i) for i in range(12)]
    blocks[6] = replace(blocks[6], reads_after=("x6",), is_converted=False)
    rows = cells(report_of(tuple(blocks)))
    assert ["6", "6", "MLP", "x6", "layers.6.part", "net.py:7"] in rows
    assert [" ".join(row) for row in rows if row[0] == "layers"] == [
        "layers 2-5: as layer 1",
        "layers 8-11: as layer 7",
    ]


def test_blocks_in_no_layer():
    rows = cells(report_of(tuple(block(i, None) for i in range(9))))
    assert rows[1] == ["1", "MLP", "x1", "→", "x0", "net", "net.py:7"]
    assert " ".join(rows[2]) == "blocks 2-8: as block 1"


def test_refusals_and_breaks_are_on_the_page():
    text = ladderize.explain(Broken(), torch.randn(3, 8)).table(width=150)
    assert "graph 1 (torch_dynamo_resume_in_forward" in text
    assert "A graph break cuts the residual stream: 4 more blocks follow it." in text
    assert "What to do: remove the break" in text
    assert re.search(r"graph breaks: .*\n  graph break: .*graphs\.py:\d+", text)


def test_width():
    text = report_of((block(0, 0), block(1, 1))).table(width=60)
    assert max(map(len, text.splitlines())) <= 60


def test_rich_draws_it_in_color():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    console.print(report_of((block(0, 0), block(1, 1))))
    drawn = console.file.getvalue()
    assert "\x1b[1;36mx0\x1b[0m" in drawn, "the stale read stands out"


class Tags(HTMLParser):
    """Counts tags, and checks that they nest."""

    def __init__(self):
        super().__init__()
        self.open, self.counts = [], {}

    def handle_starttag(self, tag, attrs):  # noqa: ARG002
        self.open.append(tag)
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_notebook():
    blocks = tuple(block(i, i, kind="<other>") for i in range(9))
    graph = report_of(blocks).graphs[0]
    text = Report((graph,))._repr_html_()
    named = replace(graph, index=1, name="<lambda>")
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert tags.counts["tr"] == (1 + 2 + 1) + (1 + 9), "the short table, and every block in a fold"
    assert tags.counts["details"] == 1
    assert "&lt;other&gt;" in text
    assert "<other>" not in text
    assert WARNING in text
    assert "graph 1 (&lt;lambda&gt;)" in Report((graph, named))._repr_html_()
    assert '<span class="dim">x1</span> → <span class="moved">x0</span>' in text


def test_full_and_short_tables_of_a_model():
    report = ladderize.explain(Residual(12), torch.randn(3, 8))
    assert len(cells(report, full=True)) == 12
    assert " ".join(cells(report)[-1]) == "layers 2-11: as layer 1"


@pytest.mark.parametrize("width", [30, 45, 100])
def test_no_cell_is_cut_off_in_a_narrow_terminal(width):
    cells = ("16", "1,037.25", "86.481 ms")
    table = plain_table("batch", "standard tok/s", "step of the ladder")
    table.add_row(*cells)
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    printed = capture.get()
    assert all(len(line.rstrip()) <= width for line in printed.splitlines())
    for letter in set("".join(cells)) - {" "}:
        assert printed.count(letter) >= "".join(cells).count(letter)
    assert "…" not in printed
