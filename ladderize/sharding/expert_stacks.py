"""Stacks of expert weights that are sharded by experts, and those that cannot be.

w[8, out, in] over 2 ranks    divided: experts 0 to 3 on rank 0, 4 to 7 on rank 1
w[6, out, in] over 4 ranks    refused: every expert is split like other weights
"""

from dataclasses import dataclass, field

from torch.fx import Node

from ladderize.errors import Blocker


@dataclass
class ExpertStacks:
    """The stacks found so far by the sharding rules.

    Attributes:
        is_wanted: whether stacks should be sharded by experts.
        divided: parameters that are sharded by experts.
        refused: parameters that cannot be, with the reasons.
    """

    is_wanted: bool = False
    divided: set[Node] = field(default_factory=set)
    refused: dict[Node, Blocker] = field(default_factory=dict)

    def may_divide(self, parameter: Node) -> bool:
        return self.is_wanted and parameter not in self.refused

    def refuse(self, parameter: Node, reason: Blocker) -> None:
        self.divided.discard(parameter)
        self.refused[parameter] = reason
