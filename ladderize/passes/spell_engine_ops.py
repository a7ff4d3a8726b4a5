"""Translate ops of serving engines to torch ops, so that the analysis sees sums and collectives.

    before   y, x1 = fused_add_rms_norm(h, x0, w, eps)     r = vllm.all_reduce(p, "tp:0")
    after    x1 = add(h, x0);  y = rms_norm(x1, w, eps)    r = wait(all_reduce(p, "sum", "3"))

An op that writes its operands becomes functional, and later readers of these read the new values.
`graph/engine_ops.py` defines the meaning of the ops. Values are preserved up to rounding: an engine
may compute the norm from the sum before it is rounded to the dtype of the stream.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from ladderize.errors import Blocker, LadderError
from ladderize.graph import ops
from ladderize.graph.engine_ops import BlockingReduce, Meaning, NormedSum, meaning_of
from ladderize.graph.fake_values import new_fake
from ladderize.graph.insert import like
from ladderize.graph.schemas import arguments_of, schema_of
from ladderize.graph.to_aten import is_aten
from ladderize.passes import PassResult
from ladderize.passes.functionalize import find_aliases, find_hazards

aten = torch.ops.aten
ALL_REDUCE = torch.ops._c10d_functional.all_reduce.default
WAIT = torch.ops._c10d_functional.wait_tensor.default


@dataclass(frozen=True)
class SpellEngineOps:
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        changed = 0
        for op in _engine_ops(gm):
            if op.obstacle():
                continue
            op.spell_out()
            changed += 1
        return PassResult(changed)


def has_engine_ops(gm: GraphModule) -> bool:
    schemas = filter(None, map(schema_of, gm.graph.nodes))
    return any(meaning_of(schema) is not None for schema in schemas)


def refuse_unspelled(gm: GraphModule) -> None:
    """Raise for known engine ops that could not be translated.

    Raises:
        LadderError: lists each op with the reason.
    """
    blockers = [Blocker.at(op.node, op.obstacle()) for op in _engine_ops(gm)]
    if blockers:
        raise LadderError(
            "These engine ops cannot be translated to torch ops:",
            blockers,
            "run the model inside its engine; ladderize/graph/engine_ops.py defines the known ops",
        )


def _engine_ops(gm: GraphModule) -> "Iterator[_EngineOp]":
    position = {node: i for i, node in enumerate(gm.graph.nodes)}
    aliases = find_aliases(position)
    words = (aten.add.Tensor, aten.rms_norm.default) if is_aten(gm) else _DYNAMO
    for node in list(gm.graph.nodes):
        schema = schema_of(node)
        meaning = None if schema is None else meaning_of(schema)
        if meaning is not None:
            given = arguments_of(node, schema)
            values = [given.get(a.name, a.default_value) for a in schema.arguments]
            results = bool(schema.returns)
            yield _EngineOp(node, schema.name, meaning, values, results, position, aliases, words)


_DYNAMO = (torch.add, torch.nn.functional.rms_norm)


@dataclass(frozen=True)
class _EngineOp:
    """One call of an engine op.

    Attributes:
        node: the call.
        name: name of the op.
        meaning: its row in the table of engine ops.
        values: values of its arguments, by position.
        returns: whether it returns its results; otherwise it writes them into its operands.
        position, aliases: positions of all nodes, and nodes by storage.
        words: functions for a sum and an RMS norm in the dialect of the graph.
    """

    node: Node
    name: str
    meaning: Meaning
    values: Sequence[Any]
    returns: bool
    position: dict[Node, int]
    aliases: Mapping[int, list[Node]]
    words: tuple[Any, Any]

    def obstacle(self) -> str:
        """The reason why the call cannot be translated, or ""."""
        meaning = self.meaning
        if isinstance(meaning, BlockingReduce):
            asked = self.values[meaning.group] if meaning.group is not None else "tensor parallel"
            if self._group(meaning) is None:
                return f"{self.name}: c10d has no group {asked!r} of its engine in this process"
        else:
            surplus = self.values[len(NormedSum.PLACES) :]
            if any(value is not None for value in surplus):
                return f"{self.name}: its last arguments, {surplus}, are not understood"
            if self.returns and any(u.target is not operator.getitem for u in self.node.users):
                return f"{self.name}: its two results are used as one"
        written = [] if self.returns else self._operands()
        if any(find_hazards(self.node, each, self.aliases, self.position) for each in written):
            return f"{self.name}: it writes memory that is used by another name too"
        return ""

    def spell_out(self) -> None:
        meaning, graph = self.meaning, self.node.graph
        with graph.inserting_before(self.node):
            if isinstance(meaning, NormedSum):
                results = self._norm_of_sum()
            else:
                (tensor,) = self._operands()
                launch = self._call(ALL_REDUCE, (tensor, "sum", self._group(meaning)), tensor)
                results = [self._call(WAIT, (launch,), tensor)]
        if not self.returns:
            for written, new in zip(self._operands(), results, strict=True):
                later = [u for u in written.users if self.position[u] > self.position[self.node]]
                for user in later:
                    user.replace_input_with(written, new)
        elif isinstance(meaning, NormedSum):
            for item in list(self.node.users):
                item.replace_all_uses_with(results[int(str(item.args[1]))])
                graph.erase_node(item)
        else:
            self.node.replace_all_uses_with(results[0])
        graph.erase_node(self.node)

    def _norm_of_sum(self) -> list[Node]:
        branch, skip, weight, epsilon = self.values[: len(NormedSum.PLACES)]
        add, norm = self.words
        total = self._call(add, (branch, skip), skip)
        width = ops.tensors(skip)[0].shape[-1]
        return [self._call(norm, (total, [width], weight, epsilon), branch), total]

    def _operands(self) -> list[Node]:
        """The operands that hold the results of a call that returns nothing, in order."""
        if isinstance(self.meaning, BlockingReduce):
            return [self.values[self.meaning.tensor]]
        return list(self.values[:2])

    def _group(self, meaning: BlockingReduce) -> str | None:
        return meaning.group_of("" if meaning.group is None else self.values[meaning.group])

    def _call(self, target: Any, args: Any, alike: Node) -> Node:
        new = like(self.node.graph.call_function(target, args), self.node)
        new_fake(new, alike)
        self.position[new] = self.position[self.node]
        return new
