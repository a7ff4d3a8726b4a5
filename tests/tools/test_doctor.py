"""`ladderize doctor` under real conditions: what works on this machine, and deliberate faults."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from helpers.installed import install
from helpers.programs import run_program
from typer.testing import CliRunner

from ladderize.tools.cli import app
from ladderize.tools.doctor import examine as doctor
from ladderize.tools.doctor import probes
from ladderize.tools.doctor.examine import PartStatus
from ladderize.tools.doctor.probes import attempt

MINOR = ".".join(torch.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def here(request: pytest.FixtureRequest) -> dict[str, PartStatus]:
    """The output of the command; without `--deep`, its probes are forks with torch imported."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.config.getoption("--deep"):
            patch.setattr(doctor, "attempt", attempt_in_a_fork)
        done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
    return {check["name"]: PartStatus(**check) for check in json.loads(done.stdout)["checks"]}


def attempt_in_a_fork(*probe: str) -> tuple[bool, str]:
    if probe[0] == "all_reduce":  # it starts processes, which a fork may not
        return attempt(*probe)
    return True, run_program(Path(probes.__file__), probe).strip()


def named(check: Callable[[], Iterable[PartStatus]]) -> dict[str, PartStatus]:
    return {finding.name: finding for finding in check()}


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("Python", "3."),
        ("system", "glibc"),
        ("torch", torch.__version__),
        ("CPU", "bfloat16"),
        ('backend="ladderize"', "torch.compile finds it, in "),
        ("Inductor on CPU", "compiles and runs correctly"),
        ("gloo", "an all-reduce on 2 ranks works"),
        ("order of collectives", "control_deps"),
        ("Inductor's cache", "ladderize-tests-"),
        ("Triton's cache", "triton"),
        ("safetensors", "."),
    ],
)
def test_what_works_here(here: dict[str, PartStatus], part: str, says: str) -> None:
    assert (here[part].status, here[part].cure) == ("ok", "")
    assert says in here[part].found


def test_what_does_not_work_has_a_reason(here: dict[str, PartStatus]) -> None:
    assert all(check.found for check in here.values())
    assert all(check.cure for check in here.values() if check.status in ("warning", "broken"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        here["torch"].status = "broken"  # type: ignore[misc]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
def test_without_a_gpu(here: dict[str, PartStatus]) -> None:
    for part in ("CUDA", "Inductor on CUDA", "NCCL"):
        assert here[part].status == "missing"


# ---- versions


@pytest.mark.parametrize(
    ("version", "status"),
    [("2.13.1+cu130", "ok"), ("2.11.0", "ok"), ("2.12.0", "warning"), ("2.10.1", "broken")],
)
def test_a_torch_of_another_version(
    monkeypatch: pytest.MonkeyPatch, version: str, status: str
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    found = named(doctor._torch)["torch"]
    assert found.status == status
    assert found.found.startswith(version)


def test_a_package_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "torchao", "0.9.0")
    monkeypatch.syspath_prepend(tmp_path)
    cure = "pip install 'torchao>=0.15'"
    found = named(doctor._packages)["torchao"]
    assert found == PartStatus("torchao", "broken", "0.9.0 is too old for quantized weights", cure)


@pytest.mark.parametrize(
    ("package", "version", "code", "status", "says"),
    [
        ("torch-tensorrt", f"{MINOR}.0", "pass", "warning", "with TensorRT 10.1"),
        ("torch-tensorrt-rtx", f"{MINOR}.1+cu130", "pass", "warning", "with TensorRT 10.1"),
        ("torch-tensorrt", f"{MINOR}.0", "raise OSError('no libnvinfer')", "broken", "libnvinfer"),
        ("torch-tensorrt", "2.1.0", "raise SystemExit", "broken", f"is not for torch {MINOR}"),
    ],
)
def test_tensorrt_is_imported_elsewhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    version: str,
    code: str,
    status: str,
    says: str,
) -> None:
    install(tmp_path, package, version)
    (tmp_path / "torch_tensorrt.py").write_text(code)
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.1'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = named(doctor._tensorrt)["TensorRT"]
    assert found.status == ("ok" if status == "warning" and doctor._num_gpus() else status)
    assert f"{package} {version}" in found.found
    assert says in found.found
    assert status != "broken" or f"torch-tensorrt=={MINOR}.*" in found.cure
    assert "torch_tensorrt" not in sys.modules


def test_no_tensorrt(here: dict[str, PartStatus]) -> None:
    found = here["TensorRT"]
    assert found.status == "missing"
    assert f"torch-tensorrt=={MINOR}.*" in found.cure and "inductor" in found.cure


# ---- broken on purpose


@pytest.mark.deep
def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    found = doctor._probe("Inductor on CPU", "", "compile", "cpu")
    assert found.status == "broken"
    assert "No working C++ compiler" in found.found
    assert "\n" not in found.found


def test_no_network_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    found = named(doctor._groups)["gloo"]
    assert found.status == "broken"
    assert "nowhere0" in found.found
    assert "GLOO_SOCKET_IFNAME" in found.cure


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("Inductor's cache", "TORCHINDUCTOR_CACHE_DIR"),
        ("Triton's cache", "TRITON_CACHE_DIR"),
    ],
)
def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv(variable, str(file / "cache"))
    found = named(doctor._caches)[name]
    assert found.status == "broken"
    assert f"{file / 'cache'} cannot be written: Not a directory" in found.found
    assert variable in found.cure


def test_a_cache_is_only_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "a" / "b"))
    assert named(doctor._caches)["Inductor's cache"].status == "ok"
    assert not list(tmp_path.iterdir())


@pytest.mark.deep
def test_a_backend_that_nobody_installed() -> None:
    works, found = attempt("backend", "nobody's")
    assert not works
    assert found.startswith("LookupError: torch finds the backends ")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("kill -SEGV $$", "killed by signal 11"),
        ("exit 1", "failed without output"),
        ("echo 'error: no such option' >&2; exit 2", "error: no such option"),
        ("exec sleep 60", "timed out"),
    ],
)
def test_a_process_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(probes, "PATIENCE", 2)
    works, found = attempt("compile", "cpu")
    assert not works
    assert says in found
