"""Refuse a plan that shards nothing, and warn of parts that are not sharded as asked.

Not everything is sharded over 2 ranks. Kept whole:
  - branch: layers.{0-3}.self_attn.q_proj.weight: 7 heads of size 8 cannot be divided over 2 ranks …
"""

import warnings
from collections.abc import Iterable

from ladderize.errors import Blocker, LadderError, ReportedWarning
from ladderize.sharding.folded_lines import folded, folded_lines, reasons
from ladderize.sharding.plan import ShardPlan

_told: set[tuple[str, ...]] = set()
NO_EXPERTS = "no branch multiplies by a stack of expert weights [experts, …, …]"


def refuse_undivided(plan: ShardPlan, by_expert: bool = False) -> None:
    """Raise if nothing can be sharded; warn of parts that are not sharded as asked.

    The same parameters and reasons are reported once until `forget_warnings`, because prefill,
    decode and new lengths are compiled separately.

    Args:
        plan: sharding plan.
        by_expert: whether each rank should hold whole experts.

    Raises:
        LadderError: lists the reason for each branch, or for each stack of experts.
    """
    if not plan.reductions:
        raise LadderError(
            f"No branch can be sharded over {plan.num_ranks} ranks:",
            map(Blocker, reasons(plan.whole)),
            "use a number of ranks that divides these sizes; for an op without a sharding rule, "
            "use a kernel written in plain tensor ops",
        )
    if by_expert and not plan.whole_experts:
        raise LadderError(
            f"No experts can be placed whole on {plan.num_ranks} ranks:",
            map(Blocker, folded(map(str, plan.split_experts)) or [NO_EXPERTS]),
            'use a number of ranks that divides the experts, or experts="tensor"',
        )
    split = folded(map(str, plan.split_experts))
    if split and _is_new(plan, split):
        listed = _listed(split)
        warning = ReportedWarning(
            f"Not all experts are placed whole on {plan.num_ranks} ranks. Split over all:{listed}"
        )
        warnings.warn(warning, stacklevel=2)
    if plan.whole and _is_new(plan, reasons(plan.whole)):
        listed = _listed(folded_lines(plan.whole))
        warning = ReportedWarning(
            f"Not everything is sharded over {plan.num_ranks} ranks. Kept whole:{listed}"
        )
        warnings.warn(warning, stacklevel=2)


def _is_new(plan: ShardPlan, lines: Iterable[str]) -> bool:
    """Whether these lines have not been reported yet; marks them as reported."""
    told = (str(plan.num_ranks), *lines)
    is_new = told not in _told
    _told.add(told)
    return is_new


def forget_warnings() -> None:
    """Report everything again."""
    _told.clear()


def _listed(items: Iterable[object]) -> str:
    return "".join(f"\n  - {item}" for item in items)
