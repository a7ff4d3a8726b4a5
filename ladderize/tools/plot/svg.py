"""Markup for SVG and HTML: `tag("rect", x=1, class_="box")`. Text is escaped, markup is not."""

from collections.abc import Sequence
from html import escape


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, *content: str, **attributes: str | int | float | bool | None) -> Markup:
    """An element. `class_` is written as `class`, `stroke_width` as `stroke-width`.

    An attribute that is None or False is left out; one that is True is written without a value.
    """
    written = "".join(
        f" {_name(key)}" if value is True else f' {_name(key)}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inner = join(content)
    return Markup(f"<{name}{written}>{inner}</{name}>")


def join(content: Sequence[str], separator: str = "") -> Markup:
    """One piece of markup of several pieces of markup or text."""
    return Markup(separator.join(c if isinstance(c, Markup) else escape(c) for c in content))


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _text(value: str | int | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
