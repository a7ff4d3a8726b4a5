"""Griffe extension: the doctests in docstrings become fenced blocks, not quotations of Markdown."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^([ ]*)>>> .*(?:\n[ ]*\S.*)*", re.MULTILINE)
DIRECTIVE = re.compile(r"[ ]*# doctest:.*")


class FenceDoctests(griffe.Extension):
    """Wrap every run of lines from a `>>>` to the next empty line."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = DIRECTIVE.sub("", obj.docstring.value)
            obj.docstring.value = DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", text)
