"""Check which Torch-TensorRT is installed and fits this torch, and say what to install.

Two packages provide the module `torch_tensorrt`: `torch-tensorrt`, and `torch-tensorrt-rtx` for RTX
cards.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from ladderize.errors import Blocker, LadderError

PACKAGES = ("torch-tensorrt", "torch-tensorrt-rtx")


@dataclass(frozen=True)
class Installed:
    """The installed TensorRT packages.

    Attributes:
        versions: versions of the packages, by name.
        problem: reason why they cannot be used, if known without importing them, or "".
    """

    versions: dict[str, str]
    problem: str

    def __str__(self) -> str:
        return ", ".join(f"{name} {v}" for name, v in self.versions.items())


def find_packages() -> Installed:
    """Find the packages without importing them, which would load CUDA libraries."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if importlib.util.find_spec("torch_tensorrt") is None:
        return Installed(found, "torch_tensorrt is not installed")
    if len(found) > 1:
        both = " and ".join(found)
        return Installed(found, f"{both} are both installed, but both provide torch_tensorrt")
    wanted = _minor(str(torch.__version__))
    wrong = [f"{name} {v}" for name, v in found.items() if _minor(v) != wanted]
    if wrong:
        return Installed(found, f"{wrong[0]} is not for torch {wanted}")
    return Installed(found, "")


def what_to_install() -> str:
    """The install command for this torch, and the alternative."""
    wanted = _minor(str(torch.__version__))
    return (
        f"pip install 'torch-tensorrt=={wanted}.*' (RTX cards: 'torch-tensorrt-rtx=={wanted}.*') "
        "on a machine with NVIDIA's driver; lowering='inductor' needs none of it"
    )


def require_packages() -> None:
    """Import `torch_tensorrt`.

    Raises:
        LadderError: it is not installed, is for another torch, or cannot be imported.
    """
    found = find_packages()
    if found.problem:
        raise LadderError(
            "lowering='tensorrt' needs Torch-TensorRT:", [Blocker(found.problem)], what_to_install()
        )
    try:
        importlib.import_module("torch_tensorrt")
    except Exception as error:  # it raises a bare Exception for missing libraries
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise LadderError(
            f"Torch-TensorRT ({found}) is installed but cannot be imported:",
            [Blocker(reason)],
            what_to_install(),
        ) from error


def _minor(text: str) -> str:
    """ "2.13" of "2.13.0+cu130"."""
    return ".".join(text.split("+")[0].split(".")[:2])
