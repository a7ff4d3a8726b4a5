"""Check what works on this machine: facts from torch.utils.collect_env, and probes.

    examine()  ->  PartStatus("torch", "ok", "2.13.0+cpu, tested"),
                   PartStatus("CUDA", "missing", "torch is built without CUDA", "install …"),
                   PartStatus("Inductor on CPU", "broken", "InvalidCxxCompiler: No working …", "…")

Nothing raises. Each probe runs in its own process (`probes.py`).
"""

import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch.utils.collect_env import get_env_info

from ladderize import compat
from ladderize.backends.tensorrt.engines.packages import find_packages, what_to_install
from ladderize.tools.doctor.probes import attempt

Status = Literal["ok", "warning", "missing", "broken"]

# Minor versions of torch, and how much of the test suite ran on them.
TESTED = {(2, 11): "tested in part", (2, 13): "tested", (2, 15): "tested in part"}
# Optional packages: the oldest version, and what needs them.
PACKAGES = {
    "transformers": ((5, 0), "its models, the demo"),
    "safetensors": ((0, 5), "checkpoints"),
    "matplotlib": ((3, 8), "plot, and pictures of bench"),
    "torchao": ((0, 15), "quantized weights"),
}


@dataclass(frozen=True)
class PartStatus:
    """One part of what ladderize depends on.

    Attributes:
        name: name of the part.
        status: "ok"; "warning": works, but slower or untested; "missing": absent, and needed by
            some uses only; "broken": present but not working, or required and absent.
        found: version or facts, or the reason, in one line.
        cure: what to do about it; "" if there is nothing to do.
    """

    name: str
    status: Status
    found: str
    cure: str = ""


def examine() -> tuple[PartStatus, ...]:
    """Run all checks in turn. This takes some seconds, because a compiler runs."""
    checks = (_system, _torch, _packages, _devices, _compilers, _order, _groups, _tensorrt, _caches)
    return tuple(finding for check in checks for finding in check())


def _probe(name: str, cure: str, *probe: str) -> PartStatus:
    works, found = attempt(*probe)
    return PartStatus(name, "ok", found) if works else PartStatus(name, "broken", found, cure)


# ---- facts


def _system() -> Iterator[PartStatus]:
    env = get_env_info()  # type: ignore[no-untyped-call]
    yield PartStatus("Python", "ok", str(env.python_version).replace("\n", " "))
    yield PartStatus("system", "ok", f"{env.os}, {env.libc_version}")
    kind = torch.backends.cpu.get_cpu_capability()
    yield PartStatus("CPU", "ok", f"{os.cpu_count()} cores, {kind}; bfloat16")


def _torch() -> Iterator[PartStatus]:
    found, minor, oldest = torch.__version__, _minor(torch.__version__), min(TESTED)
    if minor < oldest:
        cure = f"pip install 'torch>={oldest[0]}.{oldest[1]}'"
        yield PartStatus("torch", "broken", f"{found} is too old", cure)
    elif minor not in TESTED:
        known = ", ".join(".".join(map(str, v)) for v in TESTED)
        cure = f"compare with a version that ladderize was tested with: {known}"
        yield PartStatus("torch", "warning", f"{found}, not tested with ladderize", cure)
    else:
        yield PartStatus("torch", "ok", f"{found}, {TESTED[minor]}")


def _packages() -> Iterator[PartStatus]:
    """Packages that only some uses need. Importing them may be slow or fail, so it is not done."""
    for name, (oldest, use) in PACKAGES.items():
        wanted = f"pip install '{name}>={oldest[0]}.{oldest[1]}'"
        try:
            found = version(name)
        except PackageNotFoundError:
            yield PartStatus(name, "missing", f"not installed; needed for {use}", wanted)
            continue
        if _minor(found) < oldest:
            yield PartStatus(name, "broken", f"{found} is too old for {use}", wanted)
        else:
            yield PartStatus(name, "ok", found)


def _minor(text: str) -> tuple[int, int]:
    """(2, 13) of "2.13.0a0+git1234" """
    numbers = [int(number) for number in re.findall(r"\d+", text)[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def _num_gpus() -> int:
    """Number of GPUs; 0 if the driver is missing or too old, without torch's warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.device_count()


# ---- probes


def _devices() -> Iterator[PartStatus]:
    if torch.version.cuda is None:
        cure = "for GPUs, install torch from https://download.pytorch.org/whl/ with a CUDA suffix"
        found = f"torch {torch.__version__} is built without CUDA"
        yield PartStatus("CUDA", "missing", found, cure)
    elif not _num_gpus():
        found = f"torch is built for CUDA {torch.version.cuda} but sees no device"
        yield PartStatus("CUDA", "missing", found, "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    else:
        yield _probe("CUDA", "compare nvidia-smi's CUDA version with torch's", "devices")


def _compilers() -> Iterator[PartStatus]:
    cure = "pip install ladderize into this environment: a PYTHONPATH alone has no entry points"
    yield _probe('backend="ladderize"', cure, "backend", "ladderize")
    cure = 'install g++, or set CXX to a C++ compiler; until then lowering="aot_eager" works'
    yield _probe("Inductor on CPU", cure, "compile", "cpu")
    if _num_gpus():
        cure = "Triton needs a C compiler (CC), Python's headers and a device of capability 7.0"
        yield _probe("Inductor on CUDA", cure, "compile", "cuda")
    else:
        yield PartStatus("Inductor on CUDA", "missing", "no CUDA device to compile for")


def _order() -> Iterator[PartStatus]:
    if compat.has_control_deps():
        yield PartStatus("order of collectives", "ok", "kept by Inductor's control_deps")
        return
    found = "this torch has no control_deps: the ops wait_add and wait_after keep the order"
    cure = "correct but slower: residual adds are not fused; torch 2.11, 2.13 and 2.15 have it"
    yield PartStatus("order of collectives", "warning", found, cure)


def _groups() -> Iterator[PartStatus]:
    if not (dist.is_available() and dist.is_gloo_available()):
        yield PartStatus("gloo", "missing", "torch is built without it", "needed for ranks on CPU")
    else:
        cure = "set GLOO_SOCKET_IFNAME to a network interface (`lo` on one machine)"
        yield _probe("gloo", cure, "all_reduce", "gloo", "cpu", "2")
    if not (dist.is_available() and dist.is_nccl_available()):
        yield PartStatus("NCCL", "missing", "torch is built without it", "needed for ranks on GPUs")
    elif not _num_gpus():
        yield PartStatus("NCCL", "missing", "torch is built with it; no CUDA device to try it on")
    else:
        ranks = str(min(_num_gpus(), 2))
        yield _probe("NCCL", "NCCL_DEBUG=INFO says more", "all_reduce", "nccl", "cuda", ranks)


def _tensorrt() -> Iterator[PartStatus]:
    found = find_packages()
    if not found.versions or found.problem:
        status: Status = "broken" if found.versions else "missing"
        yield PartStatus("TensorRT", status, found.problem, what_to_install())
        return
    works, says = attempt("tensorrt")
    if not works:
        yield PartStatus("TensorRT", "broken", f"{found}: {says}", what_to_install())
    elif not _num_gpus():
        cure = "engines are built and run on a machine with a GPU"
        yield PartStatus("TensorRT", "warning", f"{found}, {says}; no CUDA device to run on", cure)
    else:
        yield PartStatus("TensorRT", "ok", f"{found}, {says}")


def _caches() -> Iterator[PartStatus]:
    inductor = compat.inductor_cache_dir()
    triton = os.environ.get("TRITON_CACHE_DIR", str(Path(inductor) / "triton"))
    yield _writable("Inductor's cache", inductor, "TORCHINDUCTOR_CACHE_DIR")
    yield _writable("Triton's cache", triton, "TRITON_CACHE_DIR")


def _writable(name: str, folder: str, variable: str) -> PartStatus:
    """Whether a file can be written to `folder`; leaves nothing behind."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(dir=place) as trial:
            Path(trial, "file").write_bytes(b"x")
    except OSError as error:
        reason = f"{folder} cannot be written: {error.strerror}"
        return PartStatus(name, "broken", reason, f"set {variable} to a folder that can be written")
    return PartStatus(name, "ok", folder)
