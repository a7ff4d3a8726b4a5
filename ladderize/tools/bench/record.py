"""What a benchmark found, where and with what: one JSON file, which bench/moves.py reads.

Results ── command, when, machine, versions
        └─ rows   key {"variant": "ladder", "batch": 4}   values {"median_s": 0.012, "error": 3e-7}

The end of a value's name says its unit: `_s`, `_bytes`, `tokens_per_s`. What ends in
`_ratio` or `_fraction` has none, and can be compared with another machine's.
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
    """One thing that was measured.

    Attributes:
        key: what it was: variant, phase, batch, length, link, ...
        values: what was found; None where it could not be, NaN or infinite where that was found.
    """

    key: Key
    values: Values

    @property
    def name(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.key.items())


def describe_machine() -> dict[str, str | int]:
    """Processor, the cores this process may use, memory and GPUs, each as far as it is known."""
    return {
        "cpu": _cpu_model(),
        "cores": _num_cores(),
        "memory_gib": round(_memory_bytes() / 2**30),
        "gpus": "; ".join(_gpus()),
        "system": platform.system(),
    }


def describe_versions() -> dict[str, str]:
    """Of Python, of what does the work, and of ladderize: its commit too, in a checkout."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    found["torch"] = torch.__version__  # with "+cpu" or "+cu130", which the package may leave out
    found["ladderize"] = " ".join(filter(None, [ladderize.__version__, _commit()]))
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Results:
    """What one command measured.

    Attributes:
        command: the line that measures it again.
        rows: no two of one key.
        machine, versions: as `describe_machine` and `describe_versions` say.
        when: UTC, ISO 8601.
        subject: what was measured, for people.

    Raises:
        LadderError: two rows have one key.
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
            raise LadderError("Rows of results have one key:", map(Blocker, twice))

    def to_json(self) -> str:
        """RFC 8259: NaN and infinities, which it does not have, are strings."""
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
        """Write them to `path`.

        Raises:
            LadderError: `path` exists and `force` is not set, or its folder is not there.
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
    """Those that this process may run on, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 0


def _memory_bytes() -> int:
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    if any(name not in getattr(os, "sysconf_names", {}) for name in names):
        return 0
    return math.prod(map(os.sysconf, names))


def _gpus() -> list[str]:
    """Name, memory and driver of each GPU, as nvidia-smi says."""
    if not torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False)
    return said.stdout.strip().splitlines() if said.returncode == 0 else []


def _commit() -> str:
    """Of the checkout that this package is in, "-dirty" behind it if it was changed since."""
    root = Path(__file__).parents[2]
    # A package installed below somebody's own repository is no checkout of ladderize.
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return said.stdout.strip() if said.returncode == 0 else ""
