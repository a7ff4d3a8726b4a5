"""What is drawn: content of the page and the pictures, escaping, files. No browser here."""

import re
import struct
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from helpers.reports import block, machine, reduce_in, report_of, stream_of

from ladderize import LadderError
from ladderize.errors import Blocker
from ladderize.report import Refusal, Report
from ladderize.report.data import WARNING, SegmentReport, StreamReport
from ladderize.tools.plot import draw, units
from ladderize.tools.plot.graph import BlockGraph
from ladderize.tools.plot.lanes import MAX_BARS, StepDrawing, beginning, pixels, thin, tick_step
from ladderize.tools.plot.layout import lay_out
from ladderize.tools.plot.svg import Markup, join, tag
from ladderize.tools.plot.theme import DARK, LIGHT
from ladderize.tools.predict.timeline import Interval, Lane, Step, Timeline, predict
from ladderize.tools.predict.timeline.division import Division

EVERY_BLOCK = Division(None, False)


def chain(layers, stale=1):
    return [block(i, stale) for i in range(2 * layers)]


def html_of(report, tmp_path, timeline=None, **options):
    return draw(report, tmp_path / "plot.html", timeline, **options).read_text()


def drawn(stream, is_ladder, is_full=True):
    layout = lay_out(stream, is_full)
    markup = BlockGraph(stream, layout, EVERY_BLOCK, is_ladder).draw()
    return ET.fromstring(f"<svg>{markup}</svg>")


def texts(element):
    return [text.text for text in element.iter("text")]


# ---- markup


def test_text_is_escaped_and_markup_is_not():
    assert tag("a", "<b>", Markup("<i></i>"), x=1.5, class_="c", on=True, off=None) == (
        '<a x="1.5" class="c" on>&lt;b&gt;<i></i></a>'
    )
    assert tag("a", title='"<&') == '<a title="&quot;&lt;&amp;"></a>'
    assert join(["a&b", Markup("<br>")]) == "a&amp;b<br>"
    assert isinstance(join(["a"]), Markup)


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


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_have_contrast(palette):
    """WCAG 2: 4.5 for text, 3 for what is to be told apart."""
    kinds = ("attention", "mlp", "moe", "conv", "other", "reduce")
    for ground in ("page", "panel", "warning", *kinds):
        assert contrast(palette["ink"], palette[ground]) >= 4.5, ground
    for ground in ("page", "panel", *kinds[:5]):
        assert contrast(palette["muted"], palette[ground]) >= 4.5, ground
        assert contrast(palette["stale"], palette[ground]) >= 4.5, ground
    for line in ("rail", "focus", "exposed", *(f"{kind}-line" for kind in kinds)):
        assert contrast(palette[line], palette["panel"]) >= 3, line
    assert contrast(palette["bad"], palette["panel"]) >= 4.5


# ---- the block graph


def test_stale_reads_are_dashed_and_named():
    stream = stream_of(chain(2))
    standard, ladder = drawn(stream, False), drawn(stream, True)
    assert not [e for e in standard.iter() if e.get("class") == "stale-wire"]
    assert len([e for e in ladder.iter() if e.get("class") == "stale-wire"]) == 3
    assert [text for text in texts(standard) if text.startswith("reads")] == [
        f"reads x{i}" for i in range(4)
    ]
    assert [text for text in texts(ladder) if "stale" in text] == [f"stale x{i}" for i in range(3)]
    labels = [e.get("aria-label") for e in ladder.iter() if e.get("data-block")]
    assert "ladder: h3, MLP, layer 1, model.layers.1.mlp, reads x2 (stale)" in labels


def test_a_stale_read_starts_at_its_value():
    stream = stream_of(chain(3, stale=2))
    layout = lay_out(stream, is_full=True)
    wires = [e.get("d") for e in drawn(stream, True).iter() if e.get("class") == "stale-wire"]
    starts = [float(re.match(r"M([\d.]+)", d).group(1)) for d in wires]
    assert starts == [layout.value(max(i - 2, 0)) for i in range(1, 6)]
    heights = {re.findall(r"L[\d.]+ ([\d.]+)", d)[1] for d in wires}
    assert len(heights) == 2  # two run beside each other


def test_layers_that_are_alike_are_folded():
    stream = stream_of(chain(80))
    folded = drawn(stream, True, is_full=False)
    (fold,) = [e for e in folded.iter("g") if "fold" in e.get("class", "")]
    assert (fold.get("data-from"), fold.get("data-to")) == ("4", "159")
    assert "layers 2-79: as layer 1" in texts(fold)
    assert len([e for e in folded.iter("g") if "block" in e.get("class", "")]) == 4
    full = drawn(stream, True)
    assert len([e for e in full.iter("g") if "block" in e.get("class", "")]) == 160
    assert not lay_out(stream, is_full=True).folds


def test_a_read_out_of_a_fold():
    blocks = [block(i, stale=0) for i in range(12)] + [block(i) for i in range(12, 24)]
    layout = lay_out(stream_of(blocks), is_full=False)
    first, second = layout.folds
    assert first.left < layout.value(11) < layout.value(12) < second.left
    assert "x11" in texts(drawn(stream_of(blocks), True, is_full=False))


def test_layers_of_other_sizes_are_said_to_be():
    blocks = [block(i, flops=1000 + i) for i in range(20)]
    (fold,) = lay_out(stream_of(blocks), is_full=False).folds
    assert fold.text == "layers 2-9: as layer 1, of other sizes"


def test_segments_are_named():
    segments = (SegmentReport(0, 0, 1, (1, 8, 4, 4)), SegmentReport(1, 2, 3, (1, 16, 2, 2)))
    stream = StreamReport(0, tuple(chain(2)), segments)
    assert "segment 1 of [1, 16, 2, 2]" in texts(drawn(stream, False))
    assert lay_out(stream, True).columns[2].left > 2 * 168


def test_a_branch_without_an_all_reduce_has_none():
    stream = stream_of(chain(1))
    graph = report_of(chain(1), collectives=[reduce_in("h1")]).graphs[0]
    drawing = BlockGraph(stream, lay_out(stream, True), Division.of(graph), False)
    assert drawing.draw().count(">AR<") == 1


# ---- lanes


def test_lanes_are_to_scale():
    step = Step(
        "ladder",
        Lane((Interval(0, 2, "h0", (0, 0, 0)), Interval(6, 8, "h1", (0, 0, 1)))),
        Lane((Interval(2, 7, "all-reduce h0", (0, 0, 0)),)),
    )
    scale = pixels(Timeline((step,), ""), left=100, width=800)
    blocks = {(0, 0, i): block(i) for i in range(2)}
    lanes = ET.fromstring(f"<svg>{''.join(StepDrawing(step, scale, blocks).draw())}</svg>")
    bars = [e for e in lanes.iter("rect") if "bar" in e.get("class")]
    assert [(float(e.get("x")), float(e.get("width"))) for e in bars] == [
        (100, 200),
        (700, 200),
        (300, 500),
    ]
    (hatch,) = [e for e in lanes.iter("rect") if e.get("class") == "hatch"]
    assert (float(hatch.get("x")), float(hatch.get("width"))) == (300, 400)
    said = [e.get("aria-label") for e in lanes.iter("g")]
    assert said[2] == "ladder: all-reduce h0, 5 s, 2 s to 7 s, 4 s exposed"


def test_a_hundred_thousand_kernels_are_a_few_bars():
    intervals = tuple(Interval(i, i + 0.5, f"k{i}") for i in range(100_000))
    bars = thin(Lane(intervals), closest=100_000 / MAX_BARS)
    assert len(bars) == MAX_BARS
    assert (bars[0].start, bars[-1].end) == (0, 99_999.5)
    assert bars[0].label == "50: k0, …"
    few = Lane(intervals[:10])
    assert thin(few, 1) == few.intervals


def test_the_beginning_of_a_long_step():
    timeline = predict(report_of(chain(20)), machine())
    part = beginning(timeline, 3)
    standard, ladder = part.steps
    assert part.seconds == 3 * 9 + 5  # three blocks with their all-reduces, and the fourth
    assert [i.label for i in standard.compute.intervals] == ["h0", "h1", "h2", "h3"]
    assert len(ladder.compute.intervals) == 7
    assert ladder.compute.end == part.seconds  # cut short
    assert beginning(timeline, 40) is timeline


@pytest.mark.parametrize("seconds", [1e-6, 9.9e-5, 1.0, 1.3, 2.49, 2.5, 5.9, 6, 9.99])
def test_ticks(seconds):
    assert 4 <= seconds / tick_step(seconds) <= 13


# ---- the page


class Page(HTMLParser):
    """Every tag with its attributes, and all the text outside of style and script."""

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
        if self.inside not in ("style", "script"):
            self.text += data


def test_nothing_is_fetched(tmp_path):
    source = html_of(report_of(chain(4)), tmp_path)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", source)
    page = Page(source)
    for name, attributes in page.tags:
        assert name not in ("link", "iframe", "object", "embed", "img", "base")
        assert not {"src", "href", "xlink:href", "srcset", "action"} & set(attributes)
        assert not [key for key in attributes if key.startswith("on")]
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_the_page_warns_and_says_where_numbers_are_from(tmp_path):
    page = Page(html_of(report_of(chain(2)), tmp_path, predict(report_of(chain(2)), machine(4))))
    assert WARNING in page.text
    assert "4 blocks in 1 stream, 3 read stale" in page.text
    assert "Predicted from FLOPs, bytes and a link model: 4 ranks, 1e-10 TFLOP/s" in page.text
    for row in ("model.layers.0.self_attn", "net.py:7", "1 kFLOP", "100 B"):
        assert row in page.text


def test_what_a_module_is_called_is_escaped(tmp_path):
    evil = '</script><img src=x onerror="alert(1)">'
    blocks = [block(0), block(1, module=evil, kind=evil, source=f"/{evil}:1")]
    source = html_of(report_of(blocks), tmp_path, title=evil)
    assert not [name for name, _ in Page(source).tags if name == "img"]
    assert [name for name, _ in Page(source).tags].count("script") == 1
    svg = draw(report_of(blocks), tmp_path / "plot.svg", title=evil).read_text()
    assert not list(ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}img"))


def test_a_refused_model(tmp_path):
    refusal = Refusal("It cannot be.", (Blocker("a gate", "net.py:3"),), "take it out")
    page = Page(html_of(report_of(chain(2, stale=0), refusal=refusal), tmp_path))
    for said in ("Refused", "It cannot be.", "a gate (net.py:3)", "What to do: take it out"):
        assert said in page.text
    labels = [a["aria-label"] for _, a in page.tags if a.get("role") == "group"]
    assert "stream 0, standard" in labels
    assert not [label for label in labels if "ladder" in label]


def test_without_blocks_and_without_sizes(tmp_path):
    page = Page(html_of(Report(()), tmp_path))
    assert "No residual block was found." in page.text
    assert "No prediction: no block was found." in page.text
    unknown = report_of([block(0, flops=None), block(1)])
    page = Page(html_of(unknown, tmp_path, force=True))
    assert "sizes of h0 are not known before the model runs" in page.text
    assert "unknown" in page.text


def test_two_streams(tmp_path):
    reads = {"reads_before": ("x1_1", "y1"), "reads_after": ("x0_1", "y1")}
    report = report_of(chain(1), [block(0, stream=1), block(1, stream=1, **reads)])
    page = Page(html_of(report, tmp_path))
    labels = [a["aria-label"] for _, a in page.tags if a.get("role") == "group"]
    assert labels[:4] == [f"stream {i}, {net}" for i in (0, 1) for net in ("standard", "ladder")]
    assert "stale x0_1, y1" in page.text
    keys = [a["data-block"] for name, a in page.tags if name == "tr" and "data-block" in a]
    assert keys == ["0-0-0", "0-0-1", "0-1-0", "0-1-1"]


# ---- pictures


def test_an_svg_is_whole(tmp_path):
    source = draw(report_of(chain(40)), tmp_path / "plot.svg", title="A & B").read_text()
    root = ET.fromstring(source)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    said = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    for text in ("A & B", WARNING, "Standard", "Ladder", "76 blocks"):
        assert text in said
    assert [text for text in said if text.startswith("Shown are the first")]
    assert "var(" not in source  # what rasterises it knows no variables
    assert LIGHT["stale"] in source
    dark = draw(report_of(chain(1)), tmp_path / "dark.svg", theme="dark").read_text()
    assert DARK["stale"] in dark
    assert LIGHT["stale"] not in dark


def test_nothing_of_a_picture_is_outside_of_it(tmp_path):
    root = ET.fromstring(draw(report_of(chain(4)), tmp_path / "plot.svg").read_text())
    width, height = float(root.get("width")), float(root.get("height"))
    for group in root.findall("{http://www.w3.org/2000/svg}g"):
        left, top = map(float, re.findall(r"[\d.]+", group.get("transform")))
        for rect in group.iter("{http://www.w3.org/2000/svg}rect"):
            assert left + float(rect.get("x")) + float(rect.get("width")) <= width
            assert top + float(rect.get("y")) + float(rect.get("height")) <= height


def test_a_png_is_twice_as_large(tmp_path):
    pytest.importorskip("resvg_py")
    report = report_of(chain(2))
    root = ET.fromstring(draw(report, tmp_path / "plot.svg").read_text())
    data = draw(report, tmp_path / "plot.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    size = struct.unpack(">II", data[16:24])
    assert size == tuple(round(2 * float(root.get(side))) for side in ("width", "height"))


def test_a_png_without_resvg(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(LadderError, match=r"pip install 'ladderize\[plot\]'"):
        draw(report_of(chain(1)), tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


def test_a_png_without_letters(tmp_path, monkeypatch):
    resvg_py = pytest.importorskip("resvg_py")
    real = resvg_py.svg_to_bytes
    monkeypatch.setattr(
        resvg_py, "svg_to_bytes", lambda **given: real(skip_system_fonts=True, **given)
    )
    with pytest.raises(LadderError, match="No font was found"):
        draw(report_of(chain(1)), tmp_path / "plot.png")


# ---- files


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
        ("plot.pdf", r"must end in \.html, \.svg, \.png"),
        ("plot", r"must end in"),
        ("missing/plot.svg", "is no directory"),
    ],
)
def test_where_nothing_can_be_drawn(tmp_path, name, message):
    with pytest.raises(LadderError, match=message):
        draw(report_of(chain(1)), tmp_path / name)
    with pytest.raises(LadderError, match="no theme 'sepia'"):
        draw(report_of(chain(1)), tmp_path / "plot.svg", theme="sepia")
    assert not list(tmp_path.iterdir())
