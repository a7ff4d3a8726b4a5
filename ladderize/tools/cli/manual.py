"""The man page of `ladderize`, in roff, from the help texts of its verbs.

ladderize --man | man -l -
ladderize --man > ~/.local/share/man/man1/ladderize.1
"""

import re
from collections.abc import Iterator
from typing import Any

_MARKUP = re.compile(r"\\(?=\[)")  # escapes a bracket from rich


def manual_page(context: Any, version: str) -> str:
    """The man page of the command group of `context`, a click context, with all its verbs."""
    group = context.command
    lines = [
        f'.TH LADDERIZE 1 "" "ladderize {version}" "User Commands"',
        ".SH NAME",
        r"ladderize \- rewrite residual models into ladder networks",
        ".SH SYNOPSIS",
        r".B ladderize",
        r"\fIVERB\fR \fIMODEL\fR [\fIoptions\fR]",
        ".SH DESCRIPTION",
        *_paragraphs(group.help),
        ".SH OPTIONS",
        *_options(group, context),
        ".SH VERBS",
    ]
    for name in group.list_commands(context):
        verb = group.get_command(context, name)
        lines += _verb(name, verb, type(context)(verb, info_name=name, parent=context))
    lines += [
        ".SH EXIT STATUS",
        "0: done. 1: refused, with the reason on standard error. 2: usage error.",
    ]
    return "\n".join(lines) + "\n"


def _verb(name: str, verb: Any, context: Any) -> Iterator[str]:
    arguments = [p.metavar or p.name.upper() for p in verb.params if not _is_option(p)]
    yield f".SS {name} {' '.join(arguments)} [options]"
    yield from _paragraphs(verb.help)
    yield from _options(verb, context)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _options(command: Any, context: Any) -> Iterator[str]:
    for parameter in command.get_params(context):
        if _is_option(parameter) and (told := parameter.get_help_record(context)):
            spelled, said = told
            yield ".TP"
            yield rf"\fB{_escaped(spelled)}\fR"
            yield _escaped(said)


def _paragraphs(text: str | None) -> Iterator[str]:
    for part in (text or "").split("\n\n"):
        yield ".PP"
        yield _escaped(" ".join(part.split()))


def _escaped(text: str) -> str:
    """Escape `text` for roff; a line of text must not begin with a control character."""
    text = _MARKUP.sub("", text).replace("…", "...")
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{text}" if text[:1] in (".", "'") else text
