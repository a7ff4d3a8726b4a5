"""`bench/gpu_first.sh`: on the CPU under --deep; that nothing stops it, in every run."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = ["doctor", "values", "llama-8b", "llama-70b"]


def gpu_first(*arguments, python=sys.executable, timeout=60):
    return subprocess.run(
        [ROOT / "bench" / "gpu_first.sh", *map(str, arguments)],
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_a_step_that_fails_stops_none(tmp_path):
    done = gpu_first("--out", tmp_path / "found", python="/bin/false")
    assert done.returncode == 1
    steps = json.loads((tmp_path / "found" / "steps.json").read_text())
    assert [step["step"] for step in steps] == STEPS
    assert all(step["exit"] for step in steps)
    assert done.stdout.count("exit status 1") == len(STEPS)
    with tarfile.open(tmp_path / "found" / "logs.tar") as logs:
        assert {Path(name).stem for name in logs.getnames()} == {"logs", *STEPS}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "full"], "full is not empty"),
        (["--device", "tpu"], "cuda or cpu, not tpu"),
        (["--help"], "The first minutes on a GPU"),
    ],
)
def test_bad_arguments_begin_nothing(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").touch()
    done = gpu_first(*arguments)
    assert done.returncode == 2 and said in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "kept"]


@pytest.mark.deep
@pytest.mark.timeout(600)
def test_a_rehearsal(tmp_path):
    out = tmp_path / "found"
    done = gpu_first("--device", "cpu", "--out", out, timeout=600)
    assert done.returncode == 0, done.stdout
    assert json.loads((out / "doctor.json").read_text())["ok"]
    values = json.loads((out / "values.json").read_text())["rows"]
    found = {(row["key"]["ranks"], row["key"]["dtype"]): row["values"] for row in values}
    assert len(found) == 4
    for (_, dtype), row in found.items():
        assert row["error"] < (1e-5 if dtype == "float32" else 2e-2) < row["standard_error"]
        assert (row["races"], row["disorder"], row["differing"]) == (0, 0, 0)
    for model in STEPS[2:]:
        rows = json.loads((out / f"{model}.json").read_text())["rows"]
        variants = ("standard", "written", "ladder", "bound")
        keys = {(row["key"]["variant"], row["key"]["batch"]) for row in rows}
        assert keys == {(name, batch) for name in variants for batch in (1, 16)}
    with tarfile.open(out / "traces.tar") as traces:
        assert len([name for name in traces.getnames() if name.endswith(".json.gz")]) == 16
