"""Expert parallelism: each rank holds whole experts, and tokens move to them and back.

    tensor    attention ─ all-reduce ─ experts, 1/n of each ─ all-reduce      every token everywhere
    expert    attention ─ dispatch ═ experts, 1/n of them ═ combine           1/n of the tokens

routed_experts(model) ── RoutedExperts ── expert_parallel(workload) ── the workload of one rank
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ladderize.errors import Blocker, LadderError
from ladderize.tools.predict.planning.workload import PlannedBlock, PlannedCosts, Workload

_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_NUM_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
_LISTED = re.compile(r"(.*)\.experts\.\d+\.")


@dataclass(frozen=True)
class RoutedExperts:
    """The routed experts of a model.

    Attributes:
        num_experts: number of routed experts in a layer.
        top_k: number of experts that a token is sent to.
        weight_bytes: bytes of the routed experts by the name of the module that holds them.
    """

    num_experts: int
    top_k: int
    weight_bytes: Mapping[str, int]

    def bytes_in(self, module: str) -> int:
        """Bytes of the routed experts in the module called `module` or below it."""
        inside = (name == module or name.startswith(f"{module}.") for name in self.weight_bytes)
        return sum(n for n, is_in in zip(self.weight_bytes.values(), inside, strict=True) if is_in)


def routed_experts(model: nn.Module) -> RoutedExperts | None:
    """The routed experts of a transformers model; None if its configuration names none.

    Their weights are parameters of shape `[experts, …]`, or those of modules `experts.0`,
    `experts.1`, ….
    """
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    num_experts, top_k = (_first(config, names) for names in (_NUM_EXPERTS, _NUM_CHOSEN))
    if not num_experts or not top_k:
        return None
    found: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        listed = _LISTED.match(name)
        is_stacked = parameter.dim() == 3 and parameter.shape[0] == num_experts
        if listed or is_stacked:
            found[listed[1] if listed else name.rpartition(".")[0]] += parameter.nbytes
    return RoutedExperts(num_experts, top_k, dict(found)) if found else None


def _first(config: Any, names: Sequence[str]) -> int:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), 0)


def expert_parallel(
    workload: Workload, modules: Sequence[str], routed: RoutedExperts | None, ranks: int
) -> Workload:
    """The workload of one rank, which has 1/n of the tokens and of the routed experts.

    All other weights are whole on every rank, and nothing is all-reduced. Tokens are assumed to
    choose all experts equally often.

    Args:
        workload: workload of all ranks together.
        modules: module names of its blocks.
        routed: result of `routed_experts`.
        ranks: number of ranks.

    Raises:
        LadderError: the experts cannot be divided; the message lists why.
    """
    if problems := [Blocker(text) for text in _problems(workload, modules, routed, ranks)]:
        raise LadderError(
            "Expert parallelism cannot be planned:", problems, "plan with --experts tensor"
        )
    assert routed is not None
    blocks = tuple(
        _of_a_rank(block, routed.bytes_in(module), routed.top_k, ranks)
        for block, module in zip(workload.blocks, modules, strict=True)
    )
    head = dataclasses.replace(workload.outside, flops=workload.outside.flops / ranks)
    return dataclasses.replace(workload, blocks=blocks, outside=head)


def _problems(
    workload: Workload, modules: Sequence[str], routed: RoutedExperts | None, ranks: int
) -> Iterator[str]:
    if routed is None or not any(routed.bytes_in(module) for module in modules):
        yield "the model has no routed experts that its configuration names"
    elif routed.num_experts % ranks:
        yield f"{routed.num_experts} experts cannot be divided evenly over {ranks} ranks"
    if any(block.is_local for block in workload.blocks):
        yield "the model is already sharded"


def _of_a_rank(block: PlannedBlock, routed_bytes: int, top_k: int, ranks: int) -> PlannedBlock:
    costs = PlannedCosts(
        block.costs.flops / ranks,
        block.costs.attention_flops / ranks,
        block.costs.weight_bytes - routed_bytes * (1 - 1 / ranks),
        block.costs.cache_bytes / ranks,
    )
    exchanged = top_k * block.reduce_bytes / ranks if routed_bytes else 0.0
    return dataclasses.replace(
        block, costs=costs, reduce_bytes=0.0, exchanged_bytes=exchanged, is_local=True
    )
