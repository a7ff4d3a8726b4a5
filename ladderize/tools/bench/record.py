"""The results of a benchmark, with machine and versions: a JSON file that bench/moves.py reads.

Results ── command, when, machine, versions
        └─ rows   key {"variant": "ladder", "batch": 4}   values {"median_s": 0.012, "error": 3e-7}

The suffix of a value's name is its unit: `_s`, `_bytes`, `tokens_per_s`. Values that end in
`_ratio` or `_fraction` are dimensionless and can be compared between machines.
"""

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import ladderize
from ladderize.errors import Blocker, LadderError
from ladderize.report.files import write_file

FORMAT = 1
Key = Mapping[str, str | int | float]
Values = Mapping[str, float | None]
_PACKAGES = ("torch", "transformers", "triton")


@dataclass(frozen=True)
class ResultRow:
    """One measurement.

    Attributes:
        key: what was measured: variant, phase, batch, length, link, ...
        values: results; None if unknown. NaN and infinities are results.
    """

    key: Key
    values: Values

    @property
    def name(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.key.items())


def describe_machine() -> dict[str, str | int]:
    """Processor, cores that this process may use, memory and GPUs, as far as known."""
    return {
        "cpu": _cpu_model(),
        "cores": _num_cores(),
        "memory_gib": round(_memory_bytes() / 2**30),
        "gpus": "; ".join(_gpus()),
        "system": platform.system(),
    }


def describe_versions() -> dict[str, str]:
    """Versions of Python, torch, transformers, triton and ladderize (in a checkout, the commit)."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    found["torch"] = (
        torch.__version__
    )  # has "+cpu" or "+cu130", which the package's version may lack
    found["ladderize"] = " ".join(filter(None, [ladderize.__version__, _commit()]))
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Results:
    """The results of one command.

    Attributes:
        command: command line that repeats the measurement.
        rows: measurements, with distinct keys.
        machine, versions: results of `describe_machine` and `describe_versions`.
        when: time in UTC, ISO 8601.
        subject: description of what was measured.

    Raises:
        LadderError: two rows have the same key.
    """

    command: str
    rows: tuple[ResultRow, ...]
    machine: Mapping[str, str | int] = field(default_factory=describe_machine)
    versions: Mapping[str, str] = field(default_factory=describe_versions)
    when: str = field(default_factory=_now)
    subject: str = ""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        twice = dict.fromkeys(name for name in names if names.count(name) > 1)
        if twice:
            raise LadderError("Several rows have the same key:", map(Blocker, twice))

    def to_json(self) -> str:
        """The results as RFC 8259 JSON, which lacks NaN and infinities: they become strings."""
        rows = [
            {"key": dict(row.key), "values": {n: _spell(v) for n, v in row.values.items()}}
            for row in self.rows
        ]
        data = {
            "format": FORMAT,
            "command": self.command,
            **({"subject": self.subject} if self.subject else {}),
            "when": self.when,
            "machine": self.machine,
            "versions": self.versions,
            "rows": rows,
        }
        return json.dumps(data, indent=1, allow_nan=False)

    def write(self, path: Path, force: bool = False) -> None:
        """Write the results to `path`.

        Raises:
            LadderError: `path` exists and `force` is not set, or its folder does not exist.
        """
        write_file(path, self.to_json() + "\n", force)


def _spell(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


# ---- the machine


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _num_cores() -> int:
    """Cores that this process may run on, or all if the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 0


def _memory_bytes() -> int:
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    if any(name not in getattr(os, "sysconf_names", {}) for name in names):
        return 0
    return math.prod(map(os.sysconf, names))


def _gpus() -> list[str]:
    """Name, memory and driver of each GPU, from nvidia-smi."""
    if not torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False)
    return said.stdout.strip().splitlines() if said.returncode == 0 else []


def _commit() -> str:
    """The commit of this package's checkout, with the suffix "-dirty" if files have changed."""
    root = Path(__file__).parents[2]
    # A package installed inside another repository is not a checkout of ladderize.
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return said.stdout.strip() if said.returncode == 0 else ""
