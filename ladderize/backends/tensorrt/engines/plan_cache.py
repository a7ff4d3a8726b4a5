"""Cache plans by key: in memory, and in a folder with a file per plan.

    key.plan    magic · SHA-256 of what follows · length of the header · header (JSON) · engine

Files are written atomically, by any number of ranks at once. A file that is truncated, altered or
of another format is not used and is replaced.
"""

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_MAGIC = b"ladderize plan 1\n"


@dataclass(frozen=True)
class EngineLayer:
    """A layer of the network before TensorRT fuses layers."""

    type: str
    name: str
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class CachedPlan:
    """A built engine and its bindings.

    Attributes:
        engine: engine serialized by TensorRT.
        inputs, outputs: names of its bindings, in order.
        weights: names of the weights to refit it with.
        layers: layers of the network.
        seconds: build time in seconds.
    """

    engine: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    layers: tuple[EngineLayer, ...]
    seconds: float


@dataclass
class PlanCache:
    """A cache of plans in memory and, if given, in a folder.

    Attributes:
        folder: folder of the plans, or None.
        unusable: files that could not be used.
    """

    folder: Path | None = None
    unusable: list[Path] = field(default_factory=list)
    _plans: dict[str, CachedPlan] = field(default_factory=dict)

    def find(self, key: str) -> CachedPlan | None:
        """The plan with this key; None if there is no usable one."""
        if key in self._plans or self.folder is None:
            return self._plans.get(key)
        path = self.folder / f"{key}.plan"
        if not path.exists():
            return None
        plan = decode_plan(path.read_bytes())
        if plan is None:
            self.unusable.append(path)
        else:
            self._plans[key] = plan
        return plan

    def keep(self, key: str, plan: CachedPlan) -> None:
        """Store a plan; another rank may be writing the same one."""
        self._plans[key] = plan
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".partly")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(encode_plan(plan))
            Path(name).replace(self.folder / f"{key}.plan")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def encode_plan(plan: CachedPlan) -> bytes:
    """A plan as the bytes of a file."""
    about = asdict(plan)
    engine = about.pop("engine")
    header = json.dumps(about).encode()
    body = b"".join([len(header).to_bytes(8, "big"), header, engine])
    return b"".join([_MAGIC, hashlib.sha256(body).digest(), body])


def decode_plan(data: bytes) -> CachedPlan | None:
    """The plan in a file; None if it is incomplete or of another format."""
    start = len(_MAGIC) + hashlib.sha256().digest_size
    body = data[start:]
    if data[:start] != _MAGIC + hashlib.sha256(body).digest():
        return None
    length = int.from_bytes(body[:8], "big")
    about: dict[str, Any] = json.loads(body[8 : 8 + length])
    layers = [
        EngineLayer(layer["type"], layer["name"], tuple(layer["dtypes"]))
        for layer in about["layers"]
    ]
    names = {name: tuple(about[name]) for name in ("inputs", "outputs", "weights")}
    return CachedPlan(body[8 + length :], layers=tuple(layers), seconds=about["seconds"], **names)
