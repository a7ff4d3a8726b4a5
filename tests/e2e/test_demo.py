"""`ladderize demo`: output, exit code, and failures."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from helpers.forked_launch import forked_launch
from rich.console import Console
from typer.testing import CliRunner

from ladderize import LadderError
from ladderize.tools.cli import app
from ladderize.tools.demo import blocks_of
from ladderize.tools.launch import ranks
from ladderize.tools.launch.progress import Steps, begun_by_all

LADDERIZE = (sys.executable, "-c", "from ladderize.tools.cli import main; main()")


def demo(*args: str) -> Result:
    """In this process, with ranks that are forked."""
    with forked_launch():
        return CliRunner().invoke(app, ["demo", *args])


@pytest.fixture(scope="module")
def shown() -> tuple[Result, Result]:
    """The demo as text, and the `--json` output of the same ranks."""
    results: list[Any] = []

    def launch_once(*args: Any) -> list[Any]:
        if not results:
            results.extend(launch(*args))
        return results

    with pytest.MonkeyPatch.context() as patch:
        launch = ranks.launch
        patch.setattr(ranks, "launch", launch_once)
        return demo("--layers", "2"), demo("--layers", "2", "--json")


def test_shows_map_error_and_order(shown: tuple[Result, Result]) -> None:
    done, _ = shown
    out = done.stdout
    assert done.exit_code == 0, done.output
    assert out.rstrip().endswith("demo OK")
    steps = re.findall(r"^  (.+?)  \d+\.\d s$", out, re.MULTILINE)
    assert len(steps) == 7, out  # every step was shown

    assert "4 blocks in 1 stream, 3 read stale" in out
    reads = re.findall(r"^ +(\d) +(\d) +(\w+) +(x\d(?: → x\d)?) +(\S+) ", out, re.MULTILINE)
    assert [row[3] for row in reads] == ["x0", "x1 → x0", "x2 → x1", "x3 → x2"]
    assert reads[1][4] == "model.layers.0.mlp"

    error = re.search(r"and an independent eager ladder on one process:\n +(\S+)", out)
    assert error is not None and float(error[1]) <= 1e-4
    lines = out.partition("AR_i launches")[0]  # a long one goes on below
    blocks = {text[0]: " ".join(text[1:].split()) for text in lines.split("\n  block ")[1:]}
    assert [*blocks] == ["1", "2", "3"]
    for index in (1, 2):  # the wait is behind the next block's launch
        assert blocks[str(index)].endswith(f"AR_{index}")
        assert blocks[str(index + 1)].startswith(f"W_{index - 1} ")
    assert 'backend="ladderize"' in out and "torchrun" in out
    assert "must be trained" in " ".join(out.split())


@pytest.mark.parametrize("args", [("--ranks", "0"), ("--layers", "0"), ("--rank", "2")])
def test_usage_errors(args: tuple[str, ...]) -> None:
    done = demo(*args)
    assert done.exit_code == 2
    assert args[0] in done.stderr


def test_as_data(shown: tuple[Result, Result]) -> None:
    _, done = shown
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)  # nothing else is on stdout
    assert found["ok"] and found["num_ranks"] == 2
    assert found["error"] <= 1e-4 < found["drift"]
    assert "AR_1" in found["order"]
    assert len(found["report"]["graphs"][0]["streams"][0]["blocks"]) == 4
    assert "load torch" in done.stderr


@pytest.mark.deep
def test_indivisible_heads_are_refused(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 24,
        "intermediate_size": 33,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "num_hidden_layers": 1,
        "vocab_size": 32,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    done = demo("--hf", str(path))
    assert done.exit_code == 1, done.stdout
    assert "No branch can be sharded over 2 ranks" in done.stderr
    assert "layers.0" in done.stderr
    assert "Traceback" not in done.stderr
    assert "demo OK" not in done.stdout


def test_missing_configuration_is_refused(tmp_path: Path) -> None:
    args = ("--hf", str(tmp_path / "nowhere"))
    done = demo(*args)
    assert done.exit_code == 1
    assert "nowhere: no such file or folder" in done.stderr
    assert "Traceback" not in done.stderr
    shown = demo(*args, "--debug").exception
    assert isinstance(shown, LadderError) and "nowhere" in str(shown)


def test_missing_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = demo()
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        "ladderize demo: the demo needs transformers: pip install 'ladderize[demo]'"
    ]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the rank in /proc")
def test_a_killed_rank_ends_the_demo() -> None:
    running = subprocess.Popen(
        [*LADDERIZE, "demo", "--layers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.kill(first_rank_of(running.pid), signal.SIGKILL)
    _, stderr = running.communicate(timeout=90)
    assert running.returncode == 1
    assert re.search(r"rank [01] failed: ended by SIGKILL", stderr)


def first_rank_of(pid: int) -> int:
    """The first process that `pid` spawned, once there is one."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for child in map(int, children.read_text().split()):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
        time.sleep(0.1)
    raise TimeoutError("no rank was started")


def test_a_hung_rank_says_where_and_exits(tmp_path: Path) -> None:
    script = (
        "import time; from pathlib import Path; from ladderize.tools.launch import progress\n"
        f"progress.Reporter(Path({str(tmp_path)!r}), 0, 0.5).stage('model')\n"
        "def stuck(): time.sleep(60)\n"
        "stuck()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert "in stuck" in done.stderr


def test_a_stage_shows_when_every_rank_has_begun_it(tmp_path: Path) -> None:
    stages = ("a", "b", "c")
    (tmp_path / "rank-0").write_text("a\nb\nc\n")
    assert begun_by_all(tmp_path, 2, stages) == []
    (tmp_path / "rank-1").write_text("a\n")
    assert begun_by_all(tmp_path, 2, stages) == ["a"]
    (tmp_path / "rank-1").write_text("a\nc\n")  # which has nothing to do in b
    assert begun_by_all(tmp_path, 2, stages) == ["a", "c"]


def test_steps_in_a_log_are_lines() -> None:
    log = io.StringIO()
    with Steps(Console(file=log, width=80)) as steps:
        steps.begin("think [1]")
        steps.begin("act")
    assert re.fullmatch(r"  think \[1\]  0\.\d s\n  act  0\.0 s\n", log.getvalue())
    with pytest.raises(KeyError), Steps(Console(file=log, width=80)) as steps:
        steps.begin("fail")
        raise KeyError
    assert "fail" not in log.getvalue()


def test_an_order_is_cut_into_blocks() -> None:
    order = "k AR_0 mm AR_1 W_0 k AR_2 W_1 k AR_3 k AR_4 W_2 W_3 W_4 k"
    assert blocks_of(order)[2:] == ["W_0 k AR_2", "W_1 k AR_3", "k AR_4 W_2 W_3 W_4 k"]
    assert blocks_of("k mm") == ["k mm"]
