"""The module that one rank runs: its own slices, with the names of the full model.

LocalProgram + this rank's tensors + mesh ── ShardedModule ── module(*args, **kwargs)
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate
from torch.nn.utils import clip_grads_with_norm_
from torch.utils import _pytree as pytree

from ladderize import compat
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.sharded.gradient_norms import total_norm
from ladderize.frontends.sharded.localize import GROUP, LocalProgram
from ladderize.frontends.sharded.state import StateEntry
from ladderize.graph.schemas import schema_of
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.drop_grad_regions import DropGradRegions
from ladderize.passes.runner import Log, run_pass
from ladderize.sharding.placement import IndexInput

Lower = Callable[[GraphModule], Callable[..., Any]]
"""A lowering that makes a bound graph run in engines."""

_WRITTEN = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)


class ShardedModule(nn.Module):
    """One rank's part of a converted and sharded model, created by `parallelize` and `load`.

    It owns only this rank's slices, as parameters and buffers with the names of the full model, and
    runs the exported graph with waits deferred past the next block. It can be trained like any
    module; its gradients are those of the slices, and `clip_grad_norm_` clips them.
    `torch.compile(module, backend="ladderize")` compiles it.

    Attributes:
        local_program: program, the same on every rank.
        mesh_rank: this rank on the mesh axis.
        graph_module: rank-local graph that runs; `graph_module.code` shows it.

    With TensorRT engines it computes no gradients, and a call with grad mode enabled is an error.
    """

    def __init__(
        self,
        local: LocalProgram,
        tensors: Mapping[str, Tensor],
        mesh: DeviceMesh,
        lower: Lower | None = None,
    ) -> None:
        super().__init__()
        program = local.program
        self.local_program = local
        self.mesh_rank = mesh.get_local_rank()
        self._group_name = mesh.get_group().group_name
        self.graph_module = _bind(program, mesh)
        self._run = self.graph_module if lower is None else lower(self.graph_module)
        signature = program.graph_signature
        self._call = program.module_call_graph[0].signature
        self._ranges = program.range_constraints
        for entry in local.entries:
            tensor = _owned(entry, tensors, mesh)
            for name in entry.names:
                self._own(name, tensor, entry)
        self._inputs = tuple(
            _locate(self, str(spec.target))
            for spec in signature.input_specs
            if spec.kind is not InputKind.USER_INPUT
        )
        self._written = tuple(
            _locate(self, str(spec.target)) if spec.kind in _WRITTEN else None
            for spec in signature.output_specs
        )
        self._placeholders = self.graph_module.graph.find_nodes(op="placeholder")
        super().train(_is_training(self.graph_module.graph))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on inputs with the structure, shapes and dtypes that it was traced with.

        Raises:
            LadderError: the inputs do not match the traced ones.
        """
        flat = self._flatten(args, kwargs)
        state = [getattr(owner, name) for owner, name in self._inputs]
        results = self._run(*state, *flat)
        own = []
        for result, written in zip(results, self._written, strict=True):
            if written is None:
                own.append(result)
            else:
                getattr(*written).copy_(result)
        return pytree.tree_unflatten(own, self._call.out_spec)

    def train(self, mode: bool = True) -> "ShardedModule":
        """Set the mode. Dropout and batch norm keep the mode that was traced.

        Raises:
            LadderError: the graph has such ops and was traced in the other mode.
        """
        ops = [node for node in self.graph_module.graph.nodes if _training_flag(node) is not None]
        wrong = [node for node in ops if _training_flag(node) is not mode]
        if wrong:
            names = ("train", "eval") if mode else ("eval", "train")
            raise LadderError(
                f"This program was traced in {names[1]}() mode, and these ops keep it:",
                [Blocker.at(node, str(node.target)) for node in wrong],
                f"parallelize the model after model.{names[0]}()",
            )
        return super().train(mode)

    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> Tensor:
        """Scale the gradients so that the norm of those of the full model is at most `max_norm`.

        As `torch.nn.utils.clip_grad_norm_` on the full model. That function only sees the slices of
        this rank, and would scale each rank by another factor. A collective call.

        Args:
            max_norm, norm_type, error_if_nonfinite: as in `torch.nn.utils.clip_grad_norm_`.

        Returns:
            The norm before scaling, the same on all ranks.

        Raises:
            RuntimeError: the norm is not finite, and `error_if_nonfinite` is set.
        """
        group = compat.process_group(self._group_name)
        entries = self.local_program.entries
        found = total_norm(self, entries, group, norm_type, error_if_nonfinite)
        clip_grads_with_norm_(self.parameters(), max_norm, found)
        return found

    def extra_repr(self) -> str:
        local = self.local_program
        size, whole = local.bytes_per_rank / 2**20, local.bytes_in_all / 2**20
        return f"rank {self.mesh_rank} of {local.num_ranks}, {size:.1f} of {whole:.1f} MiB"

    def _own(self, path: str, tensor: Tensor, entry: StateEntry) -> None:
        prefix, _, name = path.rpartition(".")
        owner: nn.Module = self
        for part in filter(None, prefix.split(".")):
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if entry.kind == "parameter":
            assert isinstance(tensor, nn.Parameter)
            owner.register_parameter(name, tensor)
        else:
            owner.register_buffer(name, tensor, persistent=entry.is_persistent)

    def _flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The inputs in the order of the graph, checked unless Dynamo is tracing."""
        call = self._call
        try:
            kwargs = compat.reorder_kwargs(kwargs, call.in_spec)
        except ValueError as error:
            raise LadderError(
                "Keyword arguments differ from the traced signature:", [Blocker(str(error))]
            ) from None
        if torch.compiler.is_compiling():
            return pytree.tree_leaves((args, kwargs))
        paths, spec = pytree.tree_flatten_with_path((args, kwargs))
        if spec != call.in_spec:
            raise LadderError(
                "The structure of the inputs differs from the traced one:",
                [Blocker(f"traced with {call.in_spec}"), Blocker(f"called with {spec}")],
            )
        placeholders = self._placeholders[len(self._inputs) :]
        blockers = [*_check_types(paths, placeholders)]
        reason = compat.find_wrong_input(placeholders, paths, self._ranges)
        if reason or blockers:
            raise LadderError(
                "These inputs do not match the traced ones:",
                [*blockers, *([Blocker(reason)] if reason else [])],
                "name the dynamic dims in dynamic_shapes=",
            )
        return [value for _, value in paths]


def _check_types(paths: list[Any], placeholders: list[Node]) -> Iterator[Blocker]:
    for (path, value), node in zip(paths, placeholders, strict=True):
        example = node.meta.get("val")
        if not isinstance(example, Tensor) or not isinstance(value, Tensor):
            continue
        if value.dtype != example.dtype:
            where = pytree.keystr(path)
            yield Blocker(f"input {where} is {value.dtype}, traced with {example.dtype}")


def _owned(entry: StateEntry, tensors: Mapping[str, Tensor], mesh: DeviceMesh) -> Tensor:
    if entry.kind == "index":
        index = IndexInput(entry.name, entry.rows)
        return index.tensor(mesh.get_local_rank(), mesh.device_type)
    if entry.kind == "parameter":
        return nn.Parameter(tensors[entry.name], requires_grad=entry.requires_grad)
    return tensors[entry.name]


def _locate(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    prefix, _, name = path.rpartition(".")
    return module.get_submodule(prefix), name


# ---- the graph


def _bind(program: ExportedProgram, mesh: DeviceMesh) -> GraphModule:
    """A copy of the local graph with the group and device of `mesh`, and with deferred waits."""
    here = compat.current_device(mesh.device_type)
    gm = _copy_over(program.graph_module, mesh.get_group().group_name, here)
    log = Log()
    run_pass(gm, DropGradRegions(_trained(program)), log)
    run_pass(gm, DeferWaits(), log)
    return gm


def _copy_over(gm: GraphModule, group: str, here: torch.device) -> GraphModule:
    """Copy `gm` and its subgraphs with group name `group` and device `here`."""
    graph = Graph()
    nodes: dict[Node, Node] = {}
    output = graph.graph_copy(gm.graph, nodes)
    graph.output(output)

    def on_device(value: Any) -> Any:
        return here if isinstance(value, torch.device) else value

    for node in graph.nodes:
        schema = schema_of(node)
        names = [argument.name for argument in schema.arguments] if schema else []
        if "group_name" in names:
            at = names.index("group_name")
            assert node.args[at] == GROUP
            node.update_arg(at, group)
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), on_device)
    copied = GraphModule(gm, graph, "LocalGraph")
    for node in graph.find_nodes(op="get_attr"):
        region = operator.attrgetter(str(node.target))(gm)
        if isinstance(region, GraphModule):
            copied.set_submodule(str(node.target), _copy_over(region, group, here))
    return copied


def _trained(program: ExportedProgram) -> frozenset[str]:
    """The inputs that may require gradients: parameters and the inputs of the caller."""
    may = (InputKind.PARAMETER, InputKind.USER_INPUT)
    return frozenset(s.arg.name for s in program.graph_signature.input_specs if s.kind in may)


_FLAGS = {
    "aten::dropout": "train",
    "aten::native_dropout": "train",
    "aten::feature_dropout": "train",
    "aten::alpha_dropout": "train",
    "aten::batch_norm": "training",
    "aten::rrelu": "training",
}


def _training_flag(node: Node) -> bool | None:
    """Whether an op was traced in training mode; None if it has no such mode."""
    schema = schema_of(node)
    if schema is None or schema.name not in _FLAGS:
        return None
    names = [argument.name for argument in schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return bool(given[_FLAGS[schema.name]])


def _is_training(graph: Graph) -> bool:
    return any(_training_flag(node) for node in graph.nodes)
