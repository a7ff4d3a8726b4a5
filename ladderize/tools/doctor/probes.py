"""The probes of `doctor`, each run in its own process because it may crash.

    attempt("compile", "cpu")      runs      python -P ladderize/tools/doctor/probes.py compile cpu

A probe prints its finding as the last line; if it fails, Python's traceback ends in the reason. The
file is run by path, so that no ladderize module is imported.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

# Compiling takes a minute on a slow, busy machine.
PATIENCE = 300


def attempt(*probe: str) -> tuple[bool, str]:
    """Run a probe; return whether it works, and its finding or the reason in one line."""
    command = [sys.executable, "-P", __file__, *probe]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache}
        try:
            ended = subprocess.run(
                command, env=env, capture_output=True, text=True, timeout=PATIENCE
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return False, str(error)
    if ended.returncode == 0:
        return True, ended.stdout.strip().rpartition("\n")[2]
    if ended.returncode < 0:
        return False, f"killed by signal {-ended.returncode}"
    return False, _reason(ended.stderr)


def _reason(stderr: str) -> str:
    """The last error: the first unindented line after the last traceback header."""
    _, head, last = stderr.rpartition("Traceback (most recent call last):\n")
    lines = [line for line in last.splitlines() if line and not line.startswith(" ")]
    if not lines:
        return "failed without output"
    return lines[0] if head else lines[-1]


# ---- the probes


def devices() -> str:
    """The GPUs by name and count, and whether they support bfloat16 natively."""
    names: dict[str, int] = {}
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(index) + ("" if native else ", no bfloat16")
        names[name] = names.get(name, 0) + 1
    return "; ".join(f"{count} x {name}" for name, count in names.items())


def finds(backend: str) -> str:
    """Load a backend by its entry point, as a program that does not import ladderize would."""
    found = torch.compiler.list_backends()
    if backend not in found:
        raise LookupError(f"torch finds the backends {', '.join(found)}, but not {backend}")
    torch.compile(torch.sin, backend=backend)
    return f"torch.compile finds it, in {Path(sys.modules[backend].__file__ or '').parent}"


def compiles(device: str) -> str:
    """Compile a kernel with Inductor; the caller provides an empty cache."""
    x = torch.arange(8.0, device=device)
    found = torch.compile(lambda x: x.sin() + x.cos(), fullgraph=True)(x)
    torch.testing.assert_close(found, x.sin() + x.cos())
    return "a small kernel compiles and runs correctly"


def reduces(backend: str, device: str, ranks: str) -> str:
    """Run an all-reduce; gloo fails if it does not find the network interface."""
    with tempfile.TemporaryDirectory() as folder:
        args = (backend, device, int(ranks), folder)
        start_processes(  # type: ignore[no-untyped-call]
            _reduce, args, int(ranks), start_method="fork"
        )
    return f"an all-reduce on {ranks} rank{'s' * (ranks != '1')} works"


def _reduce(rank: int, backend: str, device: str, ranks: int, folder: str) -> None:
    place = torch.device(device, rank) if device == "cuda" else torch.device(device)
    store = dist.FileStore(f"{folder}/store", ranks)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    x = torch.full((8,), rank + 1.0, device=place)
    dist.all_reduce(x)
    torch.testing.assert_close(x, torch.full_like(x, ranks * (ranks + 1) / 2))
    dist.destroy_process_group()


def imports_tensorrt() -> str:
    """Import Torch-TensorRT, and with it TensorRT and the CUDA libraries."""
    importlib.import_module("torch_tensorrt")
    tensorrt = importlib.import_module("tensorrt")  # RTX has this name too
    return f"with TensorRT {tensorrt.__version__}"


PROBES: dict[str, Callable[..., str]] = {
    "devices": devices,
    "backend": finds,
    "compile": compiles,
    "all_reduce": reduces,
    "tensorrt": imports_tensorrt,
}

if __name__ == "__main__":
    print(PROBES[sys.argv[1]](*sys.argv[2:]))
