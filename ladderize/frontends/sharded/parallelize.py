"""`ladderize.parallelize`: a model that no single rank could hold, laddered and sharded.

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
    """This rank's part of the model as a ladder network sharded over `mesh`.

    >>> shard = ladderize.parallelize(
    ...     lambda: LlamaForCausalLM(config), mesh, (ids,), checkpoint="Llama-3.1-70B"
    ... )
    >>> logits = shard(ids)

    Every rank of the mesh calls it with the same arguments. The model is exported with parameters
    that have no memory, laddered and planned; then each rank reads its own slices. No rank ever
    holds a whole sharded weight.

    Args:
        model_or_factory: a function without arguments that builds the model, whose parameters are
            then never materialized; a model, whose own parameters stay as they are; or an exported
            program.
        mesh: the tensor-parallel ranks: a 1-D mesh, or the name of an axis and its mesh.
        args, kwargs: example inputs; only their shapes, dtypes and devices matter. Without any, the
            factory of a model of transformers gives that model back, as `from_pretrained` does: it
            compiles when it is called, and has `generate`.
        dynamic_shapes: which dims of them vary, as `torch.export.export` takes them.
        checkpoint: a directory of safetensors files (an index file is respected), one such file, or
            a state dict with full tensors. None: the weights of the model itself.
        options: of `LadderConfig`; with example inputs without those for lowering. A checkpoint
            whose config.json says which ladder it is needs none but `mesh`.

    Returns:
        A module that owns this rank's slices under the names of the full model (without example
        inputs the model itself). It runs eagerly
        with deferred waits, trains, and compiles with `torch.compile(shard, backend="ladderize")`.

    Raises:
        LadderError: on every rank, whichever rank found it: the model cannot be traced or converted
            as asked, tensors of the checkpoint are missing, surplus or misshapen (all are listed),
            or there are no weights. Nothing has been loaded then.
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
    """What `parallelize` would do over `num_ranks` ranks: no ranks and no weights are needed.

    >>> plan = ladderize.plan_parallel(lambda: LlamaForCausalLM(config), 8, (ids,))
    >>> plan.bytes_per_rank / 2**30

    Raises:
        LadderError: as `parallelize`.
    """
    traced = _program(model_or_factory, args, kwargs or {}, dynamic_shapes)
    return localize(traced.program, num_ranks, aot_config(traced.entry, **options))


@dataclass(frozen=True)
class _Traced:
    """A program, its tensors by name, whether weights are among them, and the model's own entry."""

    program: ExportedProgram
    state: Mapping[str, Tensor]
    has_weights: bool
    entry: LadderEntry | None = None


@dataclass(frozen=True)
class Prepared:
    """A program, what reads this rank's tensors for it, and what makes engines of its graph."""

    local: LocalProgram
    read: Callable[[], dict[str, Tensor]]
    lower: Lower | None = None


def together(mesh: DeviceMesh, prepare: Callable[[], Prepared]) -> ShardedModule:
    """Make the module once every rank of the mesh is ready to; a rank's failure is everyone's."""
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
    """Where the weights are; `own` are the model's."""
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
