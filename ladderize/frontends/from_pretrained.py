"""`ladderize.from_pretrained(DIR, mesh)`: load a ladder over a mesh, each rank only its parts.

config.json ── the model, without weights ── compile(mesh=) ── first call: each rank reads its parts

The model has the transformers class that config.json names, with all its methods. Its parameters
and packed buffers have shapes but no memory. Graphs read the parts of sharded parameters when they
need them; parameters that each rank needs whole (norms, routers) are read whole.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ladderize import compat
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.agreement import agree, heard_by_all
from ladderize.frontends.checkpoints.configurations import new_model, read_config
from ladderize.frontends.checkpoints.stored_weights import StoredWeights, open_weights
from ladderize.frontends.compile import compile
from ladderize.frontends.mesh import release_parameters
from ladderize.frontends.mesh.local_parts import Place, Reader
from ladderize.frontends.sharded.checkpoint import TensorSource, open_checkpoint
from ladderize.frontends.sharded.tracing import META, shapes_only
from ladderize.frontends.verdicts import Verdict


def from_pretrained(
    folder: str | Path,
    mesh: DeviceMesh | tuple[str, DeviceMesh],
    *,
    dtype: torch.dtype | None = None,
    dynamic: bool | None = None,
    **options: Any,
) -> Any:
    """Load a transformers model as a ladder over `mesh`. No rank ever holds all of its weights.

    >>> model = ladderize.from_pretrained("Llama-3.1-70B-Instruct", mesh)
    >>> model.generate(**inputs, max_new_tokens=100)

    Every rank of the mesh must call this with the same arguments. The first call of the model reads
    this rank's parts of the weights. A weight that transformers makes from several stored tensors
    (stacked experts) is temporarily in memory as a whole. The model is for inference: its
    parameters require no gradients, and reading one other than by calling the model is an error.

    Args:
        folder: folder with config.json and safetensors files, as written by `save_pretrained`.
        mesh: tensor-parallel ranks: a 1-D mesh, or the name of an axis and its mesh.
        dtype: dtype of the weights; None uses that of config.json.
        dynamic: as in `torch.compile`.
        options: fields of `LadderConfig`. A checkpoint with a ladder entry in its config.json needs
            none.

    Returns:
        The model, in eval mode, on this rank's device, compiled by `ladderize.compile`.

    Raises:
        LadderError: raised on all ranks if any rank finds that the folder has no model, or that
            weights are missing, surplus or misshapen (all are listed). Reasons why the graph
            cannot be converted are raised by the first call.
    """

    def build() -> tuple[nn.Module, TensorSource]:
        return build_without_values(Path(folder), dtype), open_checkpoint(folder)

    return load_in_parts(build, {"mesh": mesh, **options}, dynamic)


def load_in_parts(
    build: Callable[[], tuple[nn.Module, TensorSource]],
    options: Mapping[str, Any],
    dynamic: bool | None = None,
) -> nn.Module:
    """Compile a transformers model as a ladder over a mesh; ranks read their parts at its calls.

    Args:
        build: returns the model, with parameters on the meta device, and the source of its weights.
        options: fields of `LadderConfig`, including the mesh.
        dynamic: as in `torch.compile`.

    Raises:
        LadderError: as for `from_pretrained`, on all ranks.
    """
    mesh = LadderConfig.from_options(options).device_mesh
    assert mesh is not None
    groups = [mesh.get_group()]
    with heard_by_all(groups, "refused"):
        model, source = build()
        _place_parameters(model, compat.current_device(mesh.device_type))
        stored = open_weights(model, source)
        _fill_buffers(model, stored)
    agree(dict.fromkeys(groups, Verdict("opened")))
    release_parameters.store(model, _readers(model, stored))
    return compile(model, dynamic=dynamic, **options)


def build_without_values(folder: Path, dtype: torch.dtype | None) -> nn.Module:
    """Build the model in `folder`, with parameters on the meta device."""
    config = read_config(folder)
    _refuse_quantized(config)
    with shapes_only():
        model = new_model(config, dtype)
    if (folder / "generation_config.json").is_file() and hasattr(model, "generation_config"):
        model.generation_config = type(model.generation_config).from_pretrained(folder)
    assert isinstance(model, nn.Module)
    return model


def _refuse_quantized(config: Any) -> None:
    """Raise for quantized weights: only their own library knows which modules hold them."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    raise LadderError(
        "The weights in this folder are quantized; their own library must load them:",
        [Blocker(f"config.json: quantization_config of {method}")],
        "load them with transformers, then ladderize.compile(model, mesh=mesh); or pass "
        "ladderize.parallelize a function that builds the model with its packed linears",
    )


def _place_parameters(model: nn.Module, device: torch.device) -> None:
    """Put meta parameters on `device`, without memory; move buffers.

    Parameters are allocated and freed one at a time, so the device need not hold the model.
    """
    made: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.device != META:
                continue
            if parameter not in made:
                empty = torch.empty_like(parameter, device=device)
                empty.untyped_storage().resize_(0)
                made[parameter] = nn.Parameter(empty, requires_grad=False)
            module._parameters[name] = made[parameter]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def _fill_buffers(model: nn.Module, stored: StoredWeights) -> None:
    packed = dict(release_parameters.packed_buffers(model))
    for name, buffer in model.named_buffers():
        if name in stored.recipes and name not in packed:
            buffer.copy_(stored.read(name, buffer.device))


def _readers(model: nn.Module, stored: StoredWeights) -> Mapping[str, Reader]:
    """The readers of each parameter and packed buffer."""

    def read(name: str, device: torch.device, place: Place | None) -> Tensor:
        if place is None:
            return stored.read(name, device)
        return stored.read(name, device, place.placement, place.rank, place.num_ranks)

    packed = release_parameters.packed_buffers(model)
    held = {n: b for n, b in packed if n in stored.recipes} | dict(model.named_parameters())
    return {name: partial(read, name, tensor.device) for name, tensor in held.items()}
