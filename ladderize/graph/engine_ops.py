"""The meaning of serving engines' own ops, by name: sums and collectives.

    vllm_ir::fused_add_rms_norm(x, x_residual, w, 1e-5)    sum and its norm           NormedSum
    vllm::all_reduce(x, "tp:0")                            waits before it returns    BlockingReduce
    _C::shm_allreduce(0, x)                                the same, in place

The table applies wherever such an op occurs, even if its engine is not installed. Attention that
writes its output into an operand needs no row: its schema declares the write.

Integrations of other engines add rows with `understand`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ladderize import compat


@dataclass(frozen=True)
class NormedSum:
    """An op that adds a branch to the stream and computes the RMS norm of the sum.

    Its first arguments are `PLACES`. It returns the norm and the sum, or writes them into the
    branch and the skip.

    Attributes:
        op: "namespace::name" for all overloads; without a namespace it applies to all namespaces.
        source: file and version of the engine that define it.
    """

    PLACES: ClassVar = ("branch", "skip", "weight", "epsilon")

    op: str
    source: str


@dataclass(frozen=True)
class BlockingReduce:
    """An all-reduce that is complete when it returns. It may work in place.

    Attributes:
        op: "namespace::name" for all overloads.
        tensor: index of the operand to reduce.
        group: index of the argument with the engine's group name; None if it has none.
        group_of: maps that name ("" if there is none) to the c10d group name; None if the engine
            has no such group in this process.
        source: file and version of the engine that define it.
    """

    op: str
    tensor: int
    group: int | None
    group_of: Callable[[str], str | None]
    source: str


Meaning = NormedSum | BlockingReduce

_meanings: dict[str, Meaning] = {}


def understand(row: Meaning) -> None:
    """Add a row for an op of an engine; it replaces an earlier row of the same op."""
    _meanings[row.op] = row


def meaning_of(schema: Any) -> Meaning | None:
    """The meaning of the op with `schema`; None if it has no row or other arguments."""
    row = _meanings.get(schema.name) or _meanings.get(schema.name.split("::")[-1])
    if isinstance(row, NormedSum) and len(schema.arguments) < len(NormedSum.PLACES):
        return None
    return row


understand(NormedSum("fused_add_rms_norm", "vllm/ir/ops/layernorm.py, csrc/layernorm.cu, 0.32"))
understand(
    BlockingReduce(
        "vllm::all_reduce", 0, 1, compat.vllm_group, "distributed/parallel_state.py, 0.32"
    )
)
understand(
    BlockingReduce(
        "_C::shm_allreduce",
        1,
        None,
        compat.vllm_group,
        "device_communicators/cpu_communicator.py, 0.32",
    )
)
