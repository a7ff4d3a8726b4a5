"""Give each launch a single wait, which outputs read too. The first of several waits is kept.

    before   l0;  w0 = wait(l0);  y = f(w0);  w1 = wait(l0);  z = g(w1);  return z, l0
    after    l0;  w0 = wait(l0);  y = f(w0);  z = g(w0);                  return z, w0

If a value is gathered twice, torch 2.15 merges the two launches but keeps both waits. If a policy
of selective checkpointing names a collective but not its wait (torchtitan's do), the forward graph
returns the launch, and the backward graph waits for it again. A wait for a value that has been
waited for is dropped; `all_to_all_single_autograd`, for example, waits itself.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Graph, GraphModule

from ladderize.graph.collectives import is_wait
from ladderize.graph.in_flight import is_launch, tensors_in_flight
from ladderize.passes import PassResult


@dataclass(frozen=True)
class JoinWaits:
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        position = {node: i for i, node in enumerate(gm.graph.nodes)}
        outputs = gm.graph.output_node()
        changed = _drop_waits_for_waits(gm.graph)
        for launch in filter(is_launch, gm.graph.nodes):
            for tensor in tensors_in_flight(launch):
                waits = sorted(filter(is_wait, tensor.users), key=position.__getitem__)
                for wait in waits[1:]:
                    wait.replace_all_uses_with(waits[0])
                    gm.graph.erase_node(wait)
                    changed += 1
                if waits and outputs in tensor.users:
                    outputs.replace_input_with(tensor, waits[0])
                    changed += 1
        return PassResult(changed)


def _drop_waits_for_waits(graph: Graph) -> int:
    again = [n for n in graph.nodes if is_wait(n) and any(map(is_wait, n.all_input_nodes))]
    for wait in again:
        wait.replace_all_uses_with(wait.all_input_nodes[0])
        graph.erase_node(wait)
    return len(again)
