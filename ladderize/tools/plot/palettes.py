"""Colors of the drawings, light and dark. The page defines them as CSS variables by name."""

from collections.abc import Mapping

Palette = Mapping[str, str]

# Light colors must be distinct: `as_variables` finds names by them.
_COLORS = {
    "page": ("#fbfbf9", "#12151b"),
    "panel": ("#ffffff", "#1a1e26"),
    "ink": ("#1c2230", "#e6e9ee"),
    "muted": ("#566070", "#a3acb9"),
    "line": ("#dfe2e6", "#303743"),
    "rail": ("#7d8795", "#7b8696"),
    "focus": ("#1f5fd0", "#7db0ff"),
    "attention": ("#e2e8fc", "#2a3560"),
    "attention-line": ("#4a62c4", "#8fa3f2"),
    "mlp": ("#d7efe9", "#183f38"),
    "mlp-line": ("#23806a", "#5cc2a7"),
    "moe": ("#ece2fa", "#3c2a5c"),
    "moe-line": ("#7a4fbd", "#b894ef"),
    "conv": ("#e7f1d4", "#33411a"),
    "conv-line": ("#5a8020", "#a5cc62"),
    "other": ("#e9ebee", "#323842"),
    "other-line": ("#69727f", "#949dab"),
    "reduce": ("#fbe8c8", "#4b3612"),
    "reduce-line": ("#a8690a", "#e0a945"),
    "stale": ("#b5194e", "#ff86ac"),
    "exposed": ("#a8560a", "#f0a24a"),
    "bad": ("#a3231b", "#ff9a90"),
}
LIGHT: Palette = {name: light for name, (light, _) in _COLORS.items()}
DARK: Palette = {name: dark for name, (_, dark) in _COLORS.items()}
PALETTES = {"light": LIGHT, "dark": DARK}
KINDS = {"attention": "attention", "MLP": "mlp", "MoE": "moe", "conv": "conv"}


def color_name(kind: str) -> str:
    """The color name of a block: that of its first parallel branch."""
    return KINDS.get(kind.partition(" + ")[0], "other")


def as_variables(svg: str) -> str:
    """Replace the colors of `LIGHT` in a drawing by CSS variables."""
    for name, color in LIGHT.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg
