"""Colours, light and dark, and the style of the drawings.

On the page colours are CSS variables, so that it follows the system; in a picture they are written
out, since what rasterises it knows no variables.
"""

from collections.abc import Mapping

Palette = Mapping[str, str]

LIGHT: Palette = {
    "page": "#fbfbf9",
    "panel": "#ffffff",
    "ink": "#1c2230",
    "muted": "#566070",
    "line": "#dfe2e6",
    "rail": "#7d8795",
    "focus": "#1f5fd0",
    "attention": "#e2e8fc",
    "attention-line": "#4a62c4",
    "mlp": "#d7efe9",
    "mlp-line": "#23806a",
    "moe": "#ece2fa",
    "moe-line": "#7a4fbd",
    "conv": "#e7f1d4",
    "conv-line": "#5a8020",
    "other": "#e9ebee",
    "other-line": "#69727f",
    "reduce": "#fbe8c8",
    "reduce-line": "#a8690a",
    "stale": "#b5194e",
    "exposed": "#a8560a",
    "warning": "#fdf3dc",
    "warning-line": "#b07a12",
    "bad": "#a3231b",
}
DARK: Palette = {
    "page": "#12151b",
    "panel": "#1a1e26",
    "ink": "#e6e9ee",
    "muted": "#a3acb9",
    "line": "#303743",
    "rail": "#7b8696",
    "focus": "#7db0ff",
    "attention": "#2a3560",
    "attention-line": "#8fa3f2",
    "mlp": "#183f38",
    "mlp-line": "#5cc2a7",
    "moe": "#3c2a5c",
    "moe-line": "#b894ef",
    "conv": "#33411a",
    "conv-line": "#a5cc62",
    "other": "#323842",
    "other-line": "#949dab",
    "reduce": "#4b3612",
    "reduce-line": "#e0a945",
    "stale": "#ff86ac",
    "exposed": "#f0a24a",
    "warning": "#2e2714",
    "warning-line": "#c99a35",
    "bad": "#ff9a90",
}

# What a machine may have: macOS, Windows, Linux. Without one of these a picture has no letters.
FAMILIES = (
    "Inter",
    "Helvetica Neue",
    "Helvetica",
    "Segoe UI",
    "Arial",
    "Liberation Sans",
    "DejaVu Sans",
    "Noto Sans",
    "sans-serif",
)

KINDS = {"attention": "attention", "MLP": "mlp", "MoE": "moe", "conv": "conv"}


def kind_class(kind: str) -> str:
    """The class of a block's colour: that of the first of parallel branches."""
    return KINDS.get(kind.partition(" + ")[0], "other")


def variables(palette: Palette) -> str:
    return "".join(f"--{name}:{value};" for name, value in palette.items())


def drawing_style(palette: Palette | None = None) -> str:
    """The rules of a drawing; with the colours of `palette` written out, or as CSS variables."""
    rules = _RULES.replace("FAMILIES", ", ".join(FAMILIES))
    for name in sorted(LIGHT, key=len, reverse=True):
        rules = rules.replace(f"${name};", f"{palette[name] if palette else f'var(--{name})'};")
    return rules


_RULES = """
.drawing text { font-family: FAMILIES; font-size: 11px; fill: $ink; }
.drawing .title { font-size: 14px; font-weight: 600; }
.drawing .heading { font-size: 18px; font-weight: 600; }
.drawing .kind { font-size: 12px; font-weight: 600; }
.drawing .quiet { fill: $muted; }
.drawing .rail { stroke: $rail; stroke-width: 2; fill: none; }
.drawing .folded-rail { stroke-dasharray: 1 6; stroke-linecap: round; }
.drawing .value { fill: $panel; stroke: $rail; stroke-width: 2; }
.drawing .sum { fill: $panel; stroke: $rail; stroke-width: 1.5; }
.drawing .wire { stroke: $rail; stroke-width: 1.5; fill: none; }
.drawing .head { fill: $rail; }
.drawing .stale-wire { stroke: $stale; stroke-width: 2; stroke-dasharray: 6 4; fill: none; }
.drawing .stale-head { fill: $stale; }
.drawing .stale-text { fill: $stale; font-weight: 600; }
.drawing .box { stroke-width: 1.5; }
.drawing .attention { fill: $attention; stroke: $attention-line; }
.drawing .mlp { fill: $mlp; stroke: $mlp-line; }
.drawing .moe { fill: $moe; stroke: $moe-line; }
.drawing .conv { fill: $conv; stroke: $conv-line; }
.drawing .other { fill: $other; stroke: $other-line; }
.drawing .reduce { fill: $reduce; stroke: $reduce-line; }
.drawing .fold-box { fill: $panel; stroke: $rail; stroke-dasharray: 2 3; }
.drawing .separator { stroke: $line; stroke-width: 1; }
.drawing .lane { fill: $page; stroke: $line; }
.drawing .bar { stroke-width: 1; }
.drawing .thin { stroke: none; }
.drawing .attention.thin { fill: $attention-line; }
.drawing .mlp.thin { fill: $mlp-line; }
.drawing .moe.thin { fill: $moe-line; }
.drawing .conv.thin { fill: $conv-line; }
.drawing .other.thin { fill: $other-line; }
.drawing .reduce.thin { fill: $reduce-line; }
.drawing .hatch { fill: url(#exposed-hatch); stroke: none; }
.drawing .hatch-line { stroke: $exposed; stroke-width: 1.2; stroke-opacity: 0.5; }
.drawing .exposed-edge { stroke: $exposed; stroke-width: 3; }
.drawing .paper { fill: $panel; }
.drawing .warning-text { fill: $exposed; }
"""
