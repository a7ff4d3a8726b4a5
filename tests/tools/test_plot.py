"""Drawings: content of the page and the pictures, escaping, files, without a browser."""

import importlib.util
import re
import struct
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from helpers.reports import block, machine, reduce_in, report_of, stream_of

from ladderize import LadderError
from ladderize.errors import Blocker
from ladderize.report import Refusal, Report
from ladderize.report.data import WARNING, SegmentReport, StreamReport
from ladderize.tools import units
from ladderize.tools.plot import draw
from ladderize.tools.plot.columns import columns_of
from ladderize.tools.plot.palettes import DARK, LIGHT
from ladderize.tools.predict.timeline import Interval, Lane, Timeline, TimelineStep, predict

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ladderize.tools.plot import sheet
from ladderize.tools.plot.step_lanes import MAX_BARS, beginning, thinned

SVG = "{http://www.w3.org/2000/svg}"


def chain(layers, stale=1):
    return [block(i, stale) for i in range(2 * layers)]


def svg_of(*drawings):
    return ET.fromstring(sheet.render(drawings, LIGHT, "svg", edge=0))


def graphs_of(report):
    (graph,) = report.graphs
    return [[*sheet.graphs(graph, s, is_named=False)][1::2] for s in graph.streams]


def texts(root):
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


def styled(root, color, *words):
    """The shapes with an edge of a color and these words in their style."""
    found = [e for e in root.iter() if f"stroke: {LIGHT[color]}" in e.get("style", "")]
    return [e for e in found if all(word in e.get("style") for word in words)]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (units.seconds(0.00125), "1.25 ms"),
        (units.seconds(0), "0"),
        (units.seconds(42e-6), "42 µs"),
        (units.seconds(3e-9), "3 ns"),
        (units.seconds(12.34), "12.3 s"),
        (units.flops(1_440_000_000_000), "1.44 TFLOP"),
        (units.flops(999_600), "1 MFLOP"),
        (units.num_bytes(64), "64 B"),
        (units.num_bytes(None), "unknown"),
        (units.percent(0.634), "63 %"),
    ],
)
def test_units(said, expected):
    assert said == expected


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colors_have_contrast(palette):
    """WCAG 2: 4.5 for text, 3 for what is to be told apart. No two names share a color."""
    kinds = ("attention", "mlp", "moe", "conv", "other")
    for ground in ("page", "panel", "reduce", *kinds):
        assert contrast(palette["ink"], palette[ground]) >= 4.5, ground
    for ground in ("page", "panel", *kinds):
        assert contrast(palette["muted"], palette[ground]) >= 4.5, ground
        assert contrast(palette["stale"], palette[ground]) >= 4.5, ground
    for line in ("rail", "focus", "exposed", *(f"{kind}-line" for kind in (*kinds, "reduce"))):
        assert contrast(palette[line], palette["panel"]) >= 3, line
    assert contrast(palette["bad"], palette["panel"]) >= 4.5
    assert len({*palette.values()}) == len(palette)


# ---- the block graph


def test_stale_reads_are_dashed_and_named():
    ((standard, ladder),) = graphs_of(report_of(chain(2)))
    assert not styled(svg_of(standard), "stale", "dasharray")
    assert len(styled(svg_of(ladder), "stale", "dasharray")) == 3
    reads = [text for text in texts(svg_of(standard)) if text.startswith("reads")]
    assert reads == [f"reads x{i}" for i in range(4)]
    stale = [text for text in texts(svg_of(ladder)) if "stale" in text]
    assert stale == [f"stale x{i}" for i in range(3)]
    assert "h3 · layer 1" in texts(svg_of(ladder))


def test_a_stale_read_starts_at_its_value():
    ((_, ladder),) = graphs_of(report_of([block(i, 2, layer=None, kind=f"k{i}") for i in range(6)]))
    wires = [e.get("d") for e in styled(svg_of(ladder), "stale", "dasharray")]
    starts = [float(re.match(r"M ([\d.]+)", d)[1]) for d in wires]
    assert starts == [ladder.columns.place(max(i - 2, 0)) for i in range(1, 6)]
    heights = {re.findall(r"L [\d.]+ ([\d.]+)", d)[0] for d in wires}
    assert len(heights) == 2  # two run next to each other


def test_layers_that_are_alike_are_folded():
    columns = columns_of(stream_of(chain(80)))
    (fold,) = columns.folds
    assert (fold.hidden[0].index, fold.hidden[-1].index) == (4, 159)
    assert [b.index for b, _ in columns.blocks] == [0, 1, 2, 3]
    ((_, ladder),) = graphs_of(report_of(chain(80)))
    assert {"156 blocks", "layers 2-79: as layer 1", "x160"} <= {*texts(svg_of(ladder))}


def test_a_read_out_of_a_fold():
    blocks = [block(i, stale=0) for i in range(12)] + [block(i) for i in range(12, 24)]
    columns = columns_of(stream_of(blocks))
    first, second = columns.folds
    assert first.left < columns.place(11) < columns.place(12) < second.left
    ((_, ladder),) = graphs_of(report_of(blocks))
    assert "x11" in texts(svg_of(ladder))


def test_layers_of_other_sizes_are_said_to_be():
    (fold,) = columns_of(stream_of([block(i, flops=1000 + i) for i in range(20)])).folds
    assert fold.text == "layers 2-9: as layer 1, with other sizes"


def test_segments_are_named():
    segments = (SegmentReport(0, 0, 1, (1, 8, 4, 4)), SegmentReport(1, 2, 3, (1, 16, 2, 2)))
    columns = columns_of(StreamReport(0, tuple(chain(2)), segments))
    assert [text for text, _ in columns.headings][1] == "segment 1 of [1, 16, 2, 2]"
    assert columns.blocks[2][1] > 2 * 168


def test_a_branch_without_an_all_reduce_has_none():
    ((standard, _),) = graphs_of(report_of(chain(1), collectives=[reduce_in("h1")]))
    assert texts(svg_of(standard)).count("AR") == 1


def test_two_streams_and_a_read_of_another():
    reads = {"reads_before": ("x1_1", "y1"), "reads_after": ("x0_1", "y1")}
    report = report_of(chain(1), [block(0, stream=1), block(1, stream=1, **reads)])
    _, (_, ladder) = graphs_of(report)
    assert {"stale x0_1, y1", "y1"} <= {*texts(svg_of(ladder))}


# ---- lanes


def test_lanes_are_to_scale():
    step = TimelineStep(
        "ladder",
        Lane((Interval(0, 2, "h0", (0, 0, 0)), Interval(6, 8, "h1", (0, 0, 1)))),
        Lane((Interval(2, 7, "all-reduce h0", (0, 0, 0)),)),
    )
    timeline = Timeline((step,), "")
    drawing, axes = sheet.lanes(report_of(chain(1)), timeline, timeline), Figure().add_subplot()
    drawing.draw(axes, LIGHT)
    spans = {}
    for bars in axes.collections:
        ends = [(min(path.vertices[:, 0]), max(path.vertices[:, 0])) for path in bars.get_paths()]
        color = "hatched" if bars.get_hatch() else to_hex(bars.get_facecolor()[0])
        spans.setdefault(color, []).extend(ends)
    assert spans[LIGHT["attention"]] == [(0, 2)]
    assert spans[LIGHT["mlp"]] == [(6, 8)]
    assert spans[LIGHT["reduce"]] == [(2, 7)]
    assert spans[LIGHT["exposed"]] == spans["hatched"] == [(2, 6)]
    assert axes.get_xlim() == (0, 8)
    said = texts(svg_of(drawing))
    assert "Ladder: 8 s, 4 s exposed, 20 % of the communication hidden" in said
    assert "h0" in said and "4 s" in said


def test_a_hundred_thousand_kernels_are_a_few_bars():
    intervals = tuple(Interval(i, i + 0.5, f"k{i}") for i in range(100_000))
    bars = thinned(Lane(intervals), closest=100_000 / MAX_BARS)
    assert len(bars) == MAX_BARS
    assert (bars[0].start, bars[-1].end) == (0, 99_999.5)
    assert bars[0].label == "50: k0, …"
    few = Lane(intervals[:10])
    assert thinned(few, 1) == few.intervals


def test_the_beginning_of_a_long_step():
    timeline = predict(report_of(chain(20)), machine())
    part = beginning(timeline, 3)
    standard, ladder = part.steps
    assert part.seconds == 3 * 9 + 5  # three blocks with their all-reduces, and the fourth
    assert [i.label for i in standard.compute.intervals] == ["h0", "h1", "h2", "h3"]
    assert len(ladder.compute.intervals) == 7
    assert ladder.compute.end == part.seconds  # cut short
    assert beginning(timeline, 40) is timeline


# ---- the page


class Page(HTMLParser):
    """Every tag with its attributes, and all the text outside of style."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.inside = [], "", None
        self.feed(source)

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        self.inside = name

    def handle_endtag(self, _):
        self.inside = None

    def handle_data(self, data):
        if self.inside != "style":
            self.text += data


def page_of(report, tmp_path, timeline=None, **options):
    return Page(draw(report, tmp_path / "plot.html", timeline, force=True, **options).read_text())


def test_nothing_is_fetched_or_run(tmp_path):
    page = page_of(report_of(chain(4)), tmp_path)
    for name, attributes in page.tags:
        assert name not in ("script", "link", "iframe", "object", "embed", "img", "base")
        assert not {"src", "srcset", "action"} & set(attributes)
        assert attributes.get("xlink:href", "#").startswith("#")
        assert not [key for key in attributes if key.startswith("on")]
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_page_warns_and_says_where_numbers_are_from(tmp_path):
    page = page_of(report_of(chain(2)), tmp_path, predict(report_of(chain(2)), machine(4)))
    assert WARNING in page.text
    assert "4 blocks in 1 stream, 3 would read stale" in page.text
    assert "Predicted from FLOPs, bytes and a link model: 4 ranks, 1e-10 TFLOP/s" in page.text
    for cell in ("model.layers.0.self_attn", "net.py:7", "1 kFLOP", "100 B", "x1 → x0"):
        assert cell in page.text


def test_names_in_the_graph_lead_to_rows(tmp_path):
    page = page_of(report_of(chain(80)), tmp_path)
    links = [a["xlink:href"] for name, a in page.tags if name == "a"]
    rows = ["#" + a["id"] for name, a in page.tags if name == "tr" and "id" in a]
    assert rows == [f"#block-0-0-{i}" for i in range(4)]
    assert links == 2 * rows  # of the standard graph and the ladder
    assert len([name for name, _ in page.tags if name == "tr"]) == 2 * 1 + 4 + 1 + 160
    identifiers = [a["id"] for name, a in page.tags if "id" in a]
    identifiers = [i for i in identifiers if not re.fullmatch("[mh][0-9a-f]{10}", i)]  # by content
    assert len({*identifiers}) == len(identifiers)


def test_what_a_module_is_called_is_escaped(tmp_path):
    evil = '</style><img src=x onerror="alert(1)">$\\frac{'
    blocks = [block(0), block(1, module=evil, kind=evil, source=f"/{evil}:1")]
    page = page_of(report_of(blocks), tmp_path, title=evil)
    assert not [name for name, _ in page.tags if name == "img"]
    assert evil in page.text
    svg = draw(report_of(blocks), tmp_path / "plot.svg", title=evil).read_text()
    assert not list(ET.fromstring(svg).iter(f"{SVG}img"))
    assert evil in texts(ET.fromstring(svg))


def test_a_refused_model(tmp_path):
    refusal = Refusal("It cannot be.", (Blocker("a gate", "net.py:3"),), "take it out")
    page = page_of(report_of(chain(2, stale=0), refusal=refusal), tmp_path)
    for said in ("Refused", "It cannot be.", "a gate (net.py:3)", "What to do: take it out"):
        assert said in page.text
    assert "Standard" in page.text
    assert "Ladder" not in page.text


def test_without_blocks_and_without_sizes(tmp_path):
    page = page_of(Report(()), tmp_path)
    assert "No residual block was found." in page.text
    assert "No prediction: no block was found." in page.text
    page = page_of(report_of([block(0, flops=None), block(1)]), tmp_path)
    assert "sizes of h0 are not known before the model runs" in page.text
    assert "unknown" in page.text


# ---- pictures and files


def test_an_svg_is_whole_and_the_same_each_time(tmp_path):
    report = report_of(chain(40))
    source = draw(report, tmp_path / "plot.svg", title="A & B").read_text()
    said = texts(ET.fromstring(source))
    for text in ("A & B", WARNING, "Standard", "Ladder", "76 blocks"):
        assert text in said
    assert [text for text in said if text.startswith("The first")]
    assert LIGHT["stale"] in source and "var(" not in source
    assert draw(report, tmp_path / "again.svg", title="A & B").read_text() == source
    dark = draw(report_of(chain(1)), tmp_path / "dark.svg", theme="dark").read_text()
    assert DARK["stale"] in dark
    assert LIGHT["stale"] not in dark


def test_a_png_is_twice_as_large(tmp_path):
    report = report_of(chain(2))
    root = ET.fromstring(draw(report, tmp_path / "plot.svg").read_text())
    data = draw(report, tmp_path / "plot.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    size = struct.unpack(">II", data[16:24])
    assert size == tuple(round(2 * float(root.get(side))) for side in ("width", "height"))


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(LadderError, match=r"pip install 'ladderize\[plot\]'"):
        draw(report_of(chain(1)), tmp_path / "plot.html")
    assert not list(tmp_path.iterdir())


def test_files_are_whole_and_replace_nothing(tmp_path):
    report, out = report_of(chain(1)), tmp_path / "plot.html"
    out.write_text("mine")
    with pytest.raises(LadderError, match="exists already"):
        draw(report, out)
    assert out.read_text() == "mine"
    assert draw(report, str(out), force=True) == out
    assert out.read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.html"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plot.pdf", r"Cannot infer the format of .*plot.pdf: use \.html, \.svg or \.png"),
        ("plot", r"Cannot infer"),
        ("missing/plot.svg", "is not a directory"),
    ],
)
def test_where_nothing_can_be_drawn(tmp_path, name, message):
    with pytest.raises(LadderError, match=message):
        draw(report_of(chain(1)), tmp_path / name)
    with pytest.raises(LadderError, match="no theme 'sepia'"):
        draw(report_of(chain(1)), tmp_path / "plot.svg", theme="sepia")
    assert not list(tmp_path.iterdir())
