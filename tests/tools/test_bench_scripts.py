"""`bench/compare.py`, `run.py` and `slow_link.py`: what they print, command lines of scenarios."""

import importlib
import importlib.util
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.programs import run_program
from moves import read
from transformers import AutoConfig
from typer.main import get_command

from ladderize.tools.bench.record import ResultRow, Results
from ladderize.tools.cli import app

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted((ROOT / "bench" / "scenarios").glob("*.toml"))


def load(name):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare, run, slow_link = load("compare"), load("run"), load("slow_link")


def results(seconds, **more):
    return Results("x", (ResultRow({"variant": "ladder"}, {"median_s": seconds, **more}),))


def compared(monkeypatch, tmp_path, old, new, *flags):
    """The exit code."""
    for name, made in (("old", old), ("new", new)):
        made.write(tmp_path / f"{name}.json", force=True)
    words = ["compare.py", str(tmp_path / "old.json"), str(tmp_path / "new.json"), *flags]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        compare.main()
    return ended.value.code


def test_exit_codes(monkeypatch, tmp_path, capsys):
    assert compared(monkeypatch, tmp_path, results(1.0), results(1.2)) == 1
    assert "variant=ladder" in (said := capsys.readouterr().out) and "worse" in said
    assert compared(monkeypatch, tmp_path, results(1.0), results(1.2), "--tolerance", "0.3") == 0
    assert compared(monkeypatch, tmp_path, results(1.0), results(0.8)) == 0
    assert "better" in capsys.readouterr().out


def test_another_machine_is_told(monkeypatch, tmp_path, capsys):
    other = replace(results(9.0, bound_ratio=1.0), machine={"cpu": "[another]"})
    assert compared(monkeypatch, tmp_path, results(1.0, bound_ratio=1.0), other) == 0
    said = capsys.readouterr().out
    assert "cpu was" in said and "'[another]'" in said and "0 of 1 values moved" in said


def test_a_file_that_is_none(monkeypatch, tmp_path):
    (tmp_path / "old.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path / "old.json"), "x.json"])
    with pytest.raises(SystemExit, match="holds no results"):
        compare.main()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("length", [64, 128], ["--length", "64,128"]),
        ("alpha_us", 50.5, ["--alpha-us", "50.5"]),
        ("strict", False, ["--no-strict"]),
        ("strict", True, ["--strict"]),
    ],
)
def test_options_are_flags(name, value, words):
    assert run.flag(name, value) == words


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_scenarios(scenario, tmp_path):
    given = tomllib.loads(scenario.read_text())
    assert given["about"]
    line = run.command_of(scenario, tmp_path)
    assert line[:3] == ["ladderize", "bench", given["model"]]
    assert line.count("--ranks") == 1 and line[-2] == "--out"
    assert _exists(given["model"]) and _exists(given["options"].get("written", given["model"]))


def _exists(model):
    """Whether a path, relative to the root, or a function of that name is there."""
    if model.startswith("hf:"):
        return AutoConfig.from_pretrained(ROOT / model.removeprefix("hf:")).num_hidden_layers
    module, _, function = model.partition(":")
    return callable(getattr(importlib.import_module(module.removeprefix("bench.")), function))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'modle = "x"', "modle: Extra inputs are not permitted"),
        (b"model = 3", "model: Input should be a valid string"),
        (b'model = "m"\nmodel = "n"', "Cannot overwrite a value"),
        (b'model = "m"\noptions = 7', "options: Input should be a valid dictionary"),
        (b'model = "m"\n[options]\nlength = [[1]]', "options.length"),
        (b"model = " + 9999 * b"[", "recursion"),
        (b"\xff", "decode"),
        (b"#" * 2**17, "more than 64 KiB"),
    ],
)
def test_a_scenario_with_a_slip(tmp_path, text, says):
    (tmp_path / "a.toml").write_bytes(text)
    with pytest.raises(SystemExit) as ended:
        run.command_of(tmp_path / "a.toml", tmp_path)
    assert "a.toml" in str(ended.value) and says in str(ended.value)


def test_results_are_replaced_when_there_are_new_ones(tmp_path, monkeypatch):
    (tmp_path / "a.toml").write_text('model = "m"\n[options]\nbatch = 1\n')
    folder = tmp_path / "results"
    calls, codes = [], [0, 0, 1]

    def call(words, **_):
        calls.append(words[2:])
        Path(words[-1]).write_text(json.dumps(len(calls)))
        return subprocess.CompletedProcess(words, codes[len(calls) - 1])

    monkeypatch.setattr(run.subprocess, "run", call)
    for expected in ("1", "2"):
        assert run.run(tmp_path / "a.toml", folder).read_text() == expected
    with pytest.raises(SystemExit, match="the command failed"):
        run.run(tmp_path / "a.toml", folder)
    assert (folder / "a.json").read_text() == "2"
    assert calls[0][1:-1] == ["bench", "m", "--batch", "1", "--out"]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_the_verb_has_the_flags_of_scenarios(scenario, tmp_path):
    verb = get_command(app).commands["bench"]
    known = {flag for option in verb.params for flag in (*option.opts, *option.secondary_opts)}
    given = {word for word in run.command_of(scenario, tmp_path) if word.startswith("--")}
    assert given <= known


SMALL = ["--hidden", "64", "--layers", "2", "--length", "16", "--lowering", "aot_eager"]


def measured(words):
    return load("slow_link").measure(slow_link.arguments(words))


@pytest.mark.deep
def test_three_programs_over_the_link_of_the_ranks(two_ranks):
    for seconds, error in two_ranks.run(measured, [*SMALL, "--repeat", "4"]):
        assert list(seconds) == ["standard", "ladder", "bound", "one all-reduce"]
        assert {len(found) for found in seconds.values()} == {4}
        assert error < 1e-5


def test_what_they_found_are_results_like_others(tmp_path, capsys):
    given = slow_link.arguments(["--link", "a wire", "--layers", "2"])
    took = {"standard": [3.0] * 6, "ladder": [2.0] * 5 + [9.0], "bound": [1.0] * 6}
    rows = tuple(slow_link.rows_of(given, {**took, "one all-reduce": [0.1] * 6}, error=1e-7))
    slow_link.report(Results("x", rows), tmp_path / "out.json")
    found = {row.key["variant"]: row for row in read(tmp_path / "out.json").rows}
    assert list(found) == ["standard", "ladder", "bound"]
    ladder, bound = found["ladder"].values, found["bound"].values
    assert (ladder["median_s"], ladder["bound_ratio"], ladder["error"]) == (2.0, 2.0, 1e-7)
    assert (ladder["standard_ratio_low"], ladder["standard_ratio_high"]) == (2 / 3, 3.0)
    assert bound["all_reduce_s"] == 0.1 and bound["block_ratio"] == pytest.approx(0.4)
    said = capsys.readouterr().out
    assert "link: a wire" in said and "1.50x" in said and "40% of a block's compute" in said


@pytest.mark.deep
def test_lowerings_are_held_against_the_first(tmp_path):
    how = ["--device", "cpu", "--dtype", "float32", "--traces", str(tmp_path)]
    how += ["--lowerings", "eager,aot_eager", "--layers", "1", "--length", "8", "--repeats", "1"]
    how += ["--model", str(ROOT / "bench" / "models" / "llama-tiny.json")]
    printed = run_program(ROOT / "bench" / "lowerings.py", how, ranks=2)
    first, second = (row.split() for row in printed.splitlines()[-2:])
    assert (first[0], float(first[1])) == ("eager", 0.0)
    assert second[0] == "aot_eager" and 0 <= float(second[1]) < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("aot_eager-0.json", "aot_eager-1.json", "eager-0.json", "eager-1.json"),
    ]
