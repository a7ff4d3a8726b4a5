"""What works on this machine, found out by trying: versions, devices, compilers, collectives.

    examine()  ->  Check("torch", "ok", "2.13.0+cpu"),
                   Check("CUDA", "missing", "torch 2.13.0+cpu is built without CUDA", "install …"),
                   Check("Inductor on CPU", "broken", "InvalidCxxCompiler: No working C++ …", "…")

Nothing raises. What may fail in any way at all is tried in a process of its own (`probes.py`).
"""

import importlib.util
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from ladderize import compat
from ladderize.backends.tensorrt.engines.packages import find_packages, what_to_install
from ladderize.tools.doctor.probes import attempt

Status = Literal["ok", "warning", "missing", "broken"]

# Minor versions of torch -> what of the suite was run on them.
TESTED = {
    (2, 11): "tested in part",
    (2, 13): "tested",
    (2, 15): "tested in part",
}
OLDEST = min(TESTED)


@dataclass(frozen=True)
class Check:
    """One part of what ladderize stands on.

    Attributes:
        name: of the part.
        status: "ok"; "warning": works, with a loss or untested; "missing": not there, and needed
            by some uses only; "broken": there, or needed by all, and does not work.
        found: what is there, or the reason, in a line.
        cure: what to do about it; "" where there is nothing to do.
    """

    name: str
    status: Status
    found: str
    cure: str = ""


def examine() -> tuple[Check, ...]:
    """Try everything, one after the other; takes some seconds, for a compiler runs."""
    return tuple(check() for check in CHECKS)


# ---- versions


def _python() -> Check:
    return Check("Python", "ok", f"{sys.version.split()[0]} at {sys.executable}")


def _torch() -> Check:
    found, minor = torch.__version__, _minor(torch.__version__)
    if minor < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Check("torch", "broken", f"{found} is too old", f"pip install 'torch>={oldest}'")
    if minor not in TESTED:
        known = ", ".join(".".join(map(str, v)) for v in TESTED)
        cure = f"compare with a version that ladderize was tested with: {known}"
        return Check("torch", "warning", f"{found}, not tested with ladderize", cure)
    return Check("torch", "ok", f"{found}, {TESTED[minor]}")


def _transformers() -> Check:
    return _package("transformers", "its models, the demo", oldest=(5, 0))


def _torchao() -> Check:
    return _package("torchao", "quantised weights", oldest=(0, 15))


def _safetensors() -> Check:
    return _package("safetensors", "checkpoints", oldest=(0, 5))


def _matplotlib() -> Check:
    return _package("matplotlib", "plot, and pictures of bench", oldest=(3, 8))


def _package(name: str, use: str, oldest: tuple[int, int]) -> Check:
    """A package that only some uses need. It is not imported: that may take seconds, or fail."""
    wanted = f"pip install '{name}>={oldest[0]}.{oldest[1]}'"
    found = _version_of(name)
    if found is None:
        return Check(name, "missing", f"not installed; needed for {use}", wanted)
    if _minor(found) < oldest:
        return Check(name, "broken", f"{found} is too old for {use}", wanted)
    return Check(name, "ok", found)


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _minor(text: str) -> tuple[int, int]:
    """(2, 13) of "2.13.0a0+git1234" """
    numbers = [int(number) for number in re.findall(r"\d+", text)[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


# ---- devices


def _cpu() -> Check:
    kind = torch.backends.cpu.get_cpu_capability()
    return Check("CPU", "ok", f"{os.cpu_count()} cores, {kind}; bfloat16")


def _cuda() -> Check:
    if torch.version.cuda is None:
        cure = "for GPUs, install torch from https://download.pytorch.org/whl/ with a CUDA suffix"
        return Check("CUDA", "missing", f"torch {torch.__version__} is built without CUDA", cure)
    if not _num_gpus():
        found = f"torch is built for CUDA {torch.version.cuda} and sees no device"
        return Check("CUDA", "missing", found, "nvidia-smi and CUDA_VISIBLE_DEVICES say why")
    works, found = attempt("devices")
    if not works:
        return Check("CUDA", "broken", found, "compare nvidia-smi's CUDA version with torch's")
    if "no bfloat16" in found:
        return Check("CUDA", "warning", found, "use float16 or float32 on these devices")
    return Check("CUDA", "ok", f"{found}; bfloat16; CUDA {torch.version.cuda}")


def _num_gpus() -> int:
    """0 where the driver is missing or too old, about which torch warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.device_count()


# ---- compilers


def _entry_point() -> Check:
    name = 'backend="ladderize"'
    works, found = attempt("backend", "ladderize")
    cure = "pip install ladderize into this environment: a PYTHONPATH alone has no entry points"
    return Check(name, "ok", found) if works else Check(name, "broken", found, cure)


def _inductor_on_cpu() -> Check:
    name = "Inductor on CPU"
    works, found = attempt("compile", "cpu")
    if works:
        return Check(name, "ok", f"{found}, with {os.environ.get('CXX', 'g++')}")
    cure = 'install g++ or let CXX name a C++ compiler; until then lowering="aot_eager" works'
    return Check(name, "broken", found, cure)


def _inductor_on_cuda() -> Check:
    name = "Inductor on CUDA"
    if not _num_gpus():
        return Check(name, "missing", "no CUDA device to compile for")
    if importlib.util.find_spec("triton") is None:
        cure = "install torch's own triton: pip install --force-reinstall torch"
        return Check(name, "broken", "Triton is not installed", cure)
    works, found = attempt("compile", "cuda")
    cure = "Triton needs a C compiler (CC), Python's headers and a device of capability 7.0"
    return Check(name, "ok", found) if works else Check(name, "broken", found, cure)


def _order() -> Check:
    if compat.has_control_deps():
        return Check("order of collectives", "ok", "kept by Inductor's control_deps")
    found = "this torch has no control_deps: the ops wait_add and wait_after keep the order"
    cure = "slower (residual adds are not fused), not wrong; torch 2.11, 2.13 and 2.15 have it"
    return Check("order of collectives", "warning", found, cure)


# ---- collectives


def _gloo() -> Check:
    if not (dist.is_available() and dist.is_gloo_available()):
        return Check("gloo", "missing", "torch is built without it", "needed for ranks on CPU")
    works, found = attempt("all_reduce", "gloo", "cpu")
    cure = "let GLOO_SOCKET_IFNAME name a network interface (`lo` on one machine)"
    return Check("gloo", "ok", found) if works else Check("gloo", "broken", found, cure)


def _nccl() -> Check:
    if not (dist.is_available() and dist.is_nccl_available()):
        return Check("NCCL", "missing", "torch is built without it", "needed for ranks on GPUs")
    if not _num_gpus():
        return Check("NCCL", "missing", "torch is built with it; no CUDA device to try it on")
    works, found = attempt("all_reduce", "nccl", "cuda")
    cure = "NCCL_DEBUG=INFO says more"
    return Check("NCCL", "ok", found) if works else Check("NCCL", "broken", found, cure)


# ---- TensorRT


def _tensorrt() -> Check:
    found = find_packages()
    if not found.versions:
        return Check("TensorRT", "missing", found.problem, what_to_install())
    if found.problem:
        return Check("TensorRT", "broken", found.problem, what_to_install())
    works, says = attempt("tensorrt")
    if not works:
        return Check("TensorRT", "broken", f"{found}: {says}", what_to_install())
    if not _num_gpus():
        cure = "engines are built and run where there is a GPU"
        return Check("TensorRT", "warning", f"{found}, {says}; no CUDA device to run on", cure)
    return Check("TensorRT", "ok", f"{found}, {says}")


# ---- caches


def _inductor_cache() -> Check:
    folder = compat.inductor_cache_dir()
    return _writable("Inductor's cache", folder, "TORCHINDUCTOR_CACHE_DIR")


def _triton_cache() -> Check:
    """Under Inductor's, where nothing else is said."""
    folder = os.environ.get("TRITON_CACHE_DIR", str(Path(compat.inductor_cache_dir()) / "triton"))
    return _writable("Triton's cache", folder, "TRITON_CACHE_DIR")


def _writable(name: str, folder: str, variable: str) -> Check:
    """Whether a file can be written there; leaves nothing behind."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(dir=place) as trial:
            Path(trial, "file").write_bytes(b"x")
    except OSError as error:
        reason = f"{folder} cannot be written: {error.strerror}"
        return Check(name, "broken", reason, f"let {variable} name a folder that can be written")
    return Check(name, "ok", folder)


CHECKS: tuple[Callable[[], Check], ...] = (
    _python,
    _torch,
    _transformers,
    _entry_point,
    _cpu,
    _cuda,
    _inductor_on_cpu,
    _inductor_on_cuda,
    _order,
    _gloo,
    _nccl,
    _tensorrt,
    _inductor_cache,
    _triton_cache,
    _safetensors,
    _matplotlib,
    _torchao,
)
