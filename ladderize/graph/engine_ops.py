"""What the ops of serving engines mean, by name: sums and collectives under an engine's own words.

    vllm_ir::fused_add_rms_norm(x, x_residual, w, 1e-5)    the sum, and its norm      NormedSum
    vllm::all_reduce(x, "tp:0")                            waits before it returns    BlockingReduce
    _C::shm_allreduce(0, x)                                the same, in place of x

The rows are understood wherever such an op occurs, with or without its engine installed. Attention
that writes its output into an operand needs no row: its schema says what it writes.

An integration of another engine adds rows with `understand`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ladderize import compat


@dataclass(frozen=True)
class NormedSum:
    """An op that adds a branch to the stream, and takes the RMS norm of the sum.

    Its first arguments are those of `PLACES`. It returns the norm and the sum; or it writes these
    into the branch and the skip.

    Attributes:
        op: "namespace::name", for every overload; without a namespace, for every one.
        source: where an engine defines it, and the version that was read.
    """

    PLACES: ClassVar = ("branch", "skip", "weight", "epsilon")

    op: str
    source: str


@dataclass(frozen=True)
class BlockingReduce:
    """An all-reduce that is done when it returns: a sum, or what it writes into its operand.

    Attributes:
        op: "namespace::name", for every overload.
        tensor: the place of its operand.
        group: the place of the argument that names the engine's group; None where none does.
        group_of: from that name ("" where there is none) to the name of the group in c10d; None if
            the engine has no such group in this process.
        source: where the engine defines it, and the version that was read.
    """

    op: str
    tensor: int
    group: int | None
    group_of: Callable[[str], str | None]
    source: str


Meaning = NormedSum | BlockingReduce

_meanings: dict[str, Meaning] = {}


def understand(row: Meaning) -> None:
    """Add what an op of an engine means; a row of the same op is replaced."""
    _meanings[row.op] = row


def meaning_of(schema: Any) -> Meaning | None:
    """Of the op with that schema; None if it is no engine's, or is called otherwise."""
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
