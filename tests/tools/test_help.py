"""`--help` of each verb shows every default."""

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ladderize.tools.cli import app

VERBS = get_command(app).commands


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_are_shown(verb, monkeypatch):
    """Rich takes `[default: 3]` in a help text for markup unless the bracket is escaped."""
    for name, value in {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, [verb, "--help"])
    said = re.sub(r"[\s│]+", " ", done.output)
    written = [p.help for p in VERBS[verb].params if "default:" in (p.help or "")]
    for text in written:
        assert re.search(r"\[default: [^\]]+\]", text.replace("\\[", "["))[0] in said
    shown = [p for p in VERBS[verb].params if p.default not in (None, False, True) and p.help]
    assert said.count("[default: ") >= len(written) + len([p for p in shown if not p.required])


def test_the_man_page_names_every_option():
    done = CliRunner().invoke(app, ["--man"])
    assert done.exit_code == 0
    assert done.output.startswith(".TH LADDERIZE 1")
    plain = done.output.replace("\\-", "-")
    for name, verb in VERBS.items():
        assert f".SS {name} " in plain
        for parameter in verb.params:
            for spelled in parameter.opts:
                assert spelled in plain or not spelled.startswith("-")
    assert "\\[" not in plain


def test_there_are_such_texts():
    every = [p.help or "" for verb in VERBS.values() for p in verb.params]
    assert sum("default:" in text for text in every) >= 5
