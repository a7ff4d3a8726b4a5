"""Choose the GPU to build engines for: that of this machine, or any with TensorRT-RTX."""

import torch

from ladderize.compat import tensorrt as trt
from ladderize.config.tensorrt import TensorRTOptions
from ladderize.errors import Blocker, LadderError


def choose_target(options: TensorRTOptions) -> tuple[int, int]:
    """The compute capability to build for.

    Raises:
        LadderError: the installed TensorRT cannot build for it, or not on this machine.
    """
    here = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    target = options.compute_capability or here
    problems = list(_problems(options, target, here))
    if problems:
        raise LadderError(
            "TensorRT cannot build these engines on this machine:",
            [Blocker(what) for what, _ in problems],
            "; ".join(dict.fromkeys(cure for _, cure in problems)),
        )
    assert target is not None
    return target


def _problems(
    options: TensorRTOptions, target: tuple[int, int] | None, here: tuple[int, int] | None
) -> list[tuple[str, str]]:
    """Problems, each with its cure."""
    is_rtx = trt.is_tensorrt_rtx()
    found = []
    if target is None and is_rtx:
        cure = 'name the GPU that the engines are for: lowering_options={"target": "8.9"}'
        found.append(("there is no GPU, and target= is not given", cure))
    if not is_rtx and here is None:
        cure = "build on the GPU, or install torch-tensorrt-rtx"
        found.append(("there is no GPU, and TensorRT builds only for the GPU of its machine", cure))
    elif not is_rtx and target != here:
        cure = f'leave out target=, which is "{_show(here)}" here'
        found.append((f'target="{_show(target)}" is not the GPU of this machine', cure))
    if is_rtx and target is not None and target not in trt.supported_targets():
        known = ", ".join(map(_show, trt.supported_targets()))
        cure = "install torch-tensorrt, which builds for data-center GPUs, or choose one of these"
        found.append((f"TensorRT-RTX builds for {known}, not for {_show(target)}", cure))
    if options.weights != "inputs" and here is None:
        cure = 'use weights="inputs", which needs no GPU'
        found.append((f"weights={options.weights!r} needs a GPU to build on", cure))
    return found


def _show(capability: tuple[int, int] | None) -> str:
    return "none" if capability is None else ".".join(map(str, capability))
