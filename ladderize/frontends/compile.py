"""`ladderize.compile(model)`: convert a model to a ladder in place.

    model(x)               standard, eager    →   ladder, compiled
    model.generate(ids)    standard, eager    →   ladder, compiled: prefill and every decode step

In: a module and the options of `LadderConfig`. Out: the same module, with the same parameters and
names; `restore` reverts it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn
from torch.fx import GraphModule
from torch.nn.parallel import DistributedDataParallel

from ladderize import compat
from ladderize.backends import Lower
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.backend import compile_graph, ladderize
from ladderize.frontends.checkpoints.conversions import forget_conversion, note_request
from ladderize.frontends.checkpoints.own_entry import own_entry
from ladderize.frontends.checkpoints.saving import lead_saving, restore_saving
from ladderize.frontends.continuous_batching import (
    lead_continuous_batching,
    restore_continuous_batching,
)
from ladderize.frontends.delegates import (
    find_delegates,
    lead_forward_through_call,
    restore_forward,
)
from ladderize.frontends.generation import (
    find_encoder,
    refuse_relative_counts,
    set_compile_by_generate,
)
from ladderize.frontends.mesh import release_parameters
from ladderize.frontends.mesh.agreed_stops import lead_stopping, restore_stopping
from ladderize.frontends.mesh.local_caches import lead_caches
from ladderize.frontends.mesh.local_parts import PARTS
from ladderize.passes.blend_reads import Blends

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class _Compiled:
    """How a model was compiled; `disabled_before` are its previous settings for `generate`."""

    config: LadderConfig
    fullgraph: bool
    disabled_before: tuple[bool | None, ...]


_compiled: WeakKeyDictionary[nn.Module, _Compiled] = WeakKeyDictionary()
"""The models that are ladders now."""


def compile(  # as torch.compile
    model: Model, *, dynamic: bool | None = None, fullgraph: bool = True, **options: Any
) -> Model:
    """Convert `model` to a ladder in place: its calls and its `generate` run compiled.

    >>> model = ladderize.compile(AutoModelForCausalLM.from_pretrained(path), layers="16:32")
    >>> model.generate(**inputs)                    # prefill and decode are both the ladder

    The module itself is compiled (`nn.Module.compile`), so everything that uses it gets the ladder:
    `model.generate`, `model.forward`, a trainer, another module. `torch.compile(model)` instead
    returns a wrapper with a `generate` that runs the inner module, standard and eager. Parameters,
    `state_dict` and hooks are unchanged; copies (`copy.deepcopy`, `torch.save`) are standard
    models. If called again, the latest options apply.

    A checkpoint with a ladder entry in its config.json needs no options. `save_pretrained` of a
    transformers model writes the entry, see `ladderize.save_pretrained`.

    Args:
        model: any module. Modules that it wraps (PEFT's models, DistributedDataParallel) are
            compiled too, and the encoder of a transformers encoder-decoder: `generate` calls these
            directly.
        dynamic, fullgraph: as in `torch.compile`. With `dynamic=True`, prefill and decode are
            compiled once for all lengths; with `None`, again at the second length.
        options: fields of `LadderConfig`.

    Raises:
        LadderError: options are invalid or contradict config.json, or `model` is a wrapper returned
            by `torch.compile`. Reasons why the graph cannot be converted are raised by the first
            call.
    """
    return _compile(model, ladderize, dynamic, fullgraph, options)


def compile_blended(
    model: Model,
    blends: Blends,
    *,
    lower: Lower | None = None,
    dynamic: bool | None = None,
    fullgraph: bool = True,
    **options: Any,
) -> Model:
    """`compile` with `blends` that set at each call how stale the blocks read.

    Args:
        model, dynamic, fullgraph, options: as for `compile`.
        blends: blend weights of the blocks.
        lower: lowering, in place of the one in `options`.
    """

    def backend(gm: GraphModule, examples: Sequence[Any], **given: Any) -> Callable[..., Any]:
        return compile_graph(gm, examples, blends=blends, lower=lower, **given)

    return _compile(model, backend, dynamic, fullgraph, options)


def _compile(
    model: Model,
    backend: Callable[..., Any],
    dynamic: bool | None,
    fullgraph: bool,
    options: Mapping[str, Any],
) -> Model:
    if not isinstance(model, nn.Module):
        raise LadderError(f"ladderize.compile takes a module, not a {type(model).__name__}.")
    wrapped: list[nn.Module] = [model, *find_delegates(model)]
    if any(compat.is_compiled_wrapper(module) for module in wrapped):
        raise LadderError(
            "This is a wrapper returned by torch.compile.", cure="pass the model in it"
        )
    config = LadderConfig.from_options(options, checkpoint=own_entry(model))
    if any(find_encoder(module) is not None for module in wrapped):
        refuse_relative_counts(config)
    restore(model)
    for module in _entry_points(model):
        module.compile(backend=backend, dynamic=dynamic, fullgraph=fullgraph, options=options)
        if config.device_mesh is not None:
            lead_caches(module, config.device_mesh)
            lead_stopping(module, config.device_mesh)
        lead_forward_through_call(module)
        lead_continuous_batching(module)
        lead_saving(module)
        note_request(module, config)
    disabled = tuple(set_compile_by_generate(m, disabled=True) for m in _entry_points(model))
    _compiled[model] = _Compiled(config, fullgraph, disabled)
    return model


def _entry_points(model: nn.Module) -> list[nn.Module]:
    """The modules that are called directly: the model, those that it wraps, and their encoders.

    DistributedDataParallel is excluded: Dynamo does not trace the counters and logs of its forward.
    """
    around = [model, *find_delegates(model)]
    wrapped = [each for each in around if not isinstance(each, DistributedDataParallel)]
    encoders = [encoder for each in wrapped if (encoder := find_encoder(each)) is not None]
    return list(dict.fromkeys([*wrapped, *encoders]))


def restore(model: Model) -> Model:
    """Revert `compile`: `model` is eager and standard again. No effect on other models.

    Released parameters are restored, in which case all ranks must call this.

    >>> ladderize.restore(model)(x)                 # as model(x) was before ladderize.compile
    """
    if model not in _compiled:
        return model
    release_parameters.refill(model)
    parts, disabled_before = _entry_points(model), _compiled.pop(model).disabled_before
    for module, disabled in reversed(list(zip(parts, disabled_before, strict=False))):
        compat.drop_compiled(module)
        restore_forward(module)
        restore_stopping(module)
        restore_continuous_batching(module)
        restore_saving(module)
        forget_conversion(module)
        set_compile_by_generate(module, disabled=disabled)
    return model


def refresh(model: nn.Module) -> None:
    """Update this rank's parts of the weights of `model` at its next call on a mesh.

    This is needed after a write to a fused weight (`[q|k|v]`, `[gate|up]`) that cannot be detected:
    `weight.data.copy_(…)`, or a write to an inference tensor. All other writes, and all writes to
    other weights, update the parts automatically.

    >>> for name, weight in model.named_parameters():
    ...     weight.data.copy_(trained[name])
    >>> ladderize.refresh(model)
    """
    for parameter in model.parameters():
        PARTS.forget(parameter)


def release_full_parameters(model: nn.Module) -> int:
    """Free the memory of full parameters if each rank only needs its part of them.

    >>> ladderize.compile(model, mesh=mesh)
    >>> with torch.no_grad():
    ...     model(ids)                                    # shows which parts are needed
    ...     ladderize.release_full_parameters(model)      # frees what they were cut from
    ...     model.generate(ids)

    Afterwards the model only runs as a ladder on this mesh under `torch.no_grad()`, including new
    shapes. Do not read, write or move its parameters. `state_dict`, `load_state_dict`, pickling
    and `deepcopy` raise. `restore_full_parameters` reverts this.

    Args:
        model: model compiled by `ladderize.compile(model, mesh=…)`, and called once.

    Returns:
        The bytes freed on this rank.

    Raises:
        LadderError: parameters may be needed whole: without `fullgraph=True` or with `strict=False`
            (parts of the model may run in eager mode), before the first call, with gradients
            enabled, or if a graph does not shard a parameter.
    """
    how = _compiled.get(model)
    blockers = [] if how is None else _ways_to_eager(how)
    if how is None or blockers:
        raise LadderError(
            "Full parameters can only be released if the whole model runs compiled:",
            blockers or [Blocker("it was not compiled by ladderize.compile")],
            "call ladderize.compile(model, mesh=mesh) with fullgraph=True and strict=True",
        )
    return release_parameters.free(model)


def restore_full_parameters(model: nn.Module) -> None:
    """Revert `release_full_parameters`. This is a collective call on all ranks of the mesh.

    The model stays a ladder. No effect on models that have their parameters.
    """
    release_parameters.refill(model)


def _ways_to_eager(how: _Compiled) -> list[Blocker]:
    ways = {
        "fullgraph=False leaves pieces to eager mode": not how.fullgraph,
        "strict=False may compile the standard model": not how.config.strict,
    }
    return [Blocker(way) for way, is_open in ways.items() if is_open]
