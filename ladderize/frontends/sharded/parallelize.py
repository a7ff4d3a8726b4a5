"""`ladderize.parallelize`: convert and shard a model that no single rank could hold.

factory ── trace ── localize ── agree ── read this rank's slices ── ShardedModule
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.export import ExportedProgram

from ladderize.config.ahead_of_time import aot_config
from ladderize.config.ladder_entry import LadderEntry
from ladderize.config.options import LadderConfig
from ladderize.errors import LadderError
from ladderize.frontends.agreement import agree, heard_by_all
from ladderize.frontends.checkpoints.own_entry import entry_of_folder, own_entry, the_one_of
from ladderize.frontends.from_pretrained import load_in_parts
from ladderize.frontends.sharded.checkpoint import StateDict, TensorSource, match, open_checkpoint
from ladderize.frontends.sharded.localize import GROUP, LocalProgram, localize
from ladderize.frontends.sharded.materialize import read_slices
from ladderize.frontends.sharded.module import Lower, ShardedModule
from ladderize.frontends.sharded.tracing import build, trace
from ladderize.frontends.verdicts import Verdict, describe_graph, settings_of

ModelOrFactory = nn.Module | Callable[[], nn.Module]


def parallelize(
    model_or_factory: ModelOrFactory | ExportedProgram,
    mesh: DeviceMesh | tuple[str, DeviceMesh],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    checkpoint: str | Path | Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Any:
    """Convert the model to a ladder sharded over `mesh`; returns this rank's part.

    >>> shard = ladderize.parallelize(
    ...     lambda: LlamaForCausalLM(config), mesh, (ids,), checkpoint="Llama-3.1-70B"
    ... )
    >>> logits = shard(ids)

    Every rank of the mesh must call this with the same arguments. The model is exported with
    parameters without memory, converted and sharded; then each rank reads its own slices. No rank
    ever holds a whole sharded weight.

    Args:
        model_or_factory: function without arguments that builds the model, which never materializes
            its parameters; or a model, whose own parameters are not changed; or an exported
            program.
        mesh: tensor-parallel ranks: a 1-D mesh, or the name of an axis and its mesh.
        args, kwargs: example inputs; only their shapes, dtypes and devices matter. Without example
            inputs, the factory of a transformers model returns that model, as `from_pretrained`
            does: it compiles when it is called, and has `generate`.
        dynamic_shapes: dynamic dims of the inputs, as for `torch.export.export`.
        checkpoint: directory of safetensors files (with an optional index file), one such file, or
            a state dict with full tensors. None: the weights of the model itself.
        options: fields of `LadderConfig`; with example inputs, without those for lowering. A
            checkpoint with a ladder entry in its config.json needs none.

    Returns:
        A module that owns this rank's slices, with the names of the full model; without example
        inputs, the model itself. The module runs eagerly with deferred waits, can be trained, and
        compiles with `torch.compile(shard, backend="ladderize")`.

    Raises:
        LadderError: raised on all ranks if any rank finds that the model cannot be traced or
            converted as asked, that tensors of the checkpoint are missing, surplus or misshapen
            (all are listed), or that there are no weights. Nothing has been loaded then.
    """
    options["mesh"] = mesh
    ranks = LadderConfig.from_options({"mesh": mesh}).device_mesh
    assert ranks is not None
    if not args and not kwargs and not isinstance(model_or_factory, (nn.Module, ExportedProgram)):
        with heard_by_all([ranks.get_group()], "refused"):
            model_or_factory, _ = build(model_or_factory)
        if hasattr(model_or_factory, "generate"):
            model = model_or_factory
            return load_in_parts(lambda: (model, _source(checkpoint, {})), options)
    aot_config(**options)
    inputs = (args, kwargs or {}, dynamic_shapes)
    return together(ranks, lambda: _prepare(model_or_factory, options, ranks, inputs, checkpoint))


def plan_parallel(
    model_or_factory: ModelOrFactory | ExportedProgram,
    num_ranks: int,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    **options: Any,
) -> LocalProgram:
    """Plan `parallelize` over `num_ranks` ranks. This needs neither ranks nor weights.

    >>> plan = ladderize.plan_parallel(lambda: LlamaForCausalLM(config), 8, (ids,))
    >>> plan.bytes_per_rank / 2**30

    Raises:
        LadderError: as for `parallelize`.
    """
    traced = _program(model_or_factory, args, kwargs or {}, dynamic_shapes)
    return localize(traced.program, num_ranks, aot_config(traced.entry, **options))


@dataclass(frozen=True)
class _Traced:
    """A program, its tensors by name, whether these include weights, and the model's entry."""

    program: ExportedProgram
    state: Mapping[str, Tensor]
    has_weights: bool
    entry: LadderEntry | None = None


@dataclass(frozen=True)
class Prepared:
    """A program, a reader of this rank's tensors, and a lowering to engines."""

    local: LocalProgram
    read: Callable[[], dict[str, Tensor]]
    lower: Lower | None = None


def together(mesh: DeviceMesh, prepare: Callable[[], Prepared]) -> ShardedModule:
    """Create the module when all ranks of the mesh are ready. A failure is raised on all ranks."""
    groups = [mesh.get_group()]
    with heard_by_all(groups, "refused"):
        prepared = prepare()
    agree(dict.fromkeys(groups, _verdict(prepared.local)))
    with heard_by_all(groups, "not loaded"):
        module = ShardedModule(prepared.local, prepared.read(), mesh, prepared.lower)
    agree(dict.fromkeys(groups, Verdict("loaded")))
    return module


def _verdict(local: LocalProgram) -> Verdict:
    settings = [*settings_of(LadderConfig()), *local.lines, *map(str, local.entries)]
    return describe_graph(local.program.graph_module, local.lines[0], settings, GROUP)


def _prepare(
    model_or_factory: ModelOrFactory | ExportedProgram,
    options: Mapping[str, Any],
    mesh: DeviceMesh,
    inputs: tuple[Sequence[Any], Mapping[str, Any], Any],
    checkpoint: str | Path | Mapping[str, Tensor] | None,
) -> Prepared:
    traced = _program(model_or_factory, *inputs)
    state, files = traced.state, checkpoint if isinstance(checkpoint, str | Path) else None
    said = None if files is None else entry_of_folder(Path(files))
    config = aot_config(the_one_of(traced.entry, said), **options)
    local = localize(traced.program, mesh.size(), config)
    names = {name for entry in local.entries if entry.is_persistent for name in entry.names}
    own = {name: t for name, t in state.items() if name in names} if traced.has_weights else {}
    source = _source(checkpoint, own)
    match(local.entries, source)
    return Prepared(local, lambda: read_slices(local.entries, state, source, mesh))


def _source(
    checkpoint: str | Path | Mapping[str, Tensor] | None, own: Mapping[str, Tensor]
) -> TensorSource:
    """The source of the weights; `own` are the model's weights."""
    if isinstance(checkpoint, str | Path):
        return open_checkpoint(checkpoint)
    if checkpoint is None and not own:
        raise LadderError(
            "A factory's model has shapes, but no weights.",
            cure="pass checkpoint=, or a model instead of the factory",
        )
    return StateDict(own if checkpoint is None else checkpoint)


def _program(
    model_or_factory: ModelOrFactory | ExportedProgram,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
) -> _Traced:
    if isinstance(model_or_factory, ExportedProgram):
        program = model_or_factory
        return _Traced(program, {**program.state_dict, **program.constants}, has_weights=True)
    model, has_weights = build(model_or_factory)
    program = trace(model, args, kwargs, dynamic_shapes)
    own = dict(model.named_buffers(remove_duplicate=False))
    if has_weights:
        own |= dict(model.named_parameters(remove_duplicate=False))
    return _Traced(program, {**program.constants, **own}, has_weights, own_entry(model))
