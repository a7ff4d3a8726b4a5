"""Build `stand_in_gpu.cpp`, and load it before torch looks for GPUs. Does not import torch."""

import ctypes
import importlib.util
import subprocess
from pathlib import Path


def load(folder: Path) -> None:
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    torch = Path(found.origin).parent
    library = folder / "stand_in_gpu.so"
    source = Path(__file__).with_name("stand_in_gpu.cpp")
    command = ["g++", "-std=c++20", "-shared", "-fPIC", str(source), "-o", str(library)]
    command += [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
    command += [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True)
    ctypes.CDLL(str(library))
