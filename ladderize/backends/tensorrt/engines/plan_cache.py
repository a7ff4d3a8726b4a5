"""Plans by key: in memory, and in a folder of one file each.

    key.plan    magic · SHA-256 of what follows · length of the header · header (JSON) · engine

A file is written whole or not at all, by any number of ranks at once. One that is cut short,
altered or of another make is not used, and is written anew.
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
    """A layer of the network that TensorRT was given, before it fuses them."""

    type: str
    name: str
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class CachedPlan:
    """A built engine, and how it is called.

    Attributes:
        engine: as TensorRT serialized it.
        inputs, outputs: names of its bindings, in order.
        weights: names of the weights that it is refitted with.
        layers: of the network.
        seconds: what building took.
    """

    engine: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    layers: tuple[EngineLayer, ...]
    seconds: float


@dataclass
class PlanCache:
    """Plans that were built or read, and the folder that they are kept in, if there is one.

    Attributes:
        unusable: files that were there and could not be used.
    """

    folder: Path | None = None
    unusable: list[Path] = field(default_factory=list)
    _plans: dict[str, CachedPlan] = field(default_factory=dict)

    def find(self, key: str) -> CachedPlan | None:
        """The plan of this key, None if there is none that can be used."""
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
        """Put a plan in; another rank may be writing the same one."""
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
    """The plan in a file, None if it is not whole or not one of these."""
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
