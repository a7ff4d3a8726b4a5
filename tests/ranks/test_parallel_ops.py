"""copy, reduce and wait: values and gradients on two ranks, eager and through AOTAutograd."""

import subprocess
import sys
from typing import Any

import numpy
import pytest
import torch
import torch.distributed as dist
from helpers.ranks import Ranks

from ladderize.graph import parallel_ops


def sharded_mlp(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, group: str) -> torch.Tensor:
    hidden = torch.relu(parallel_ops.copy(x, group) @ up)
    return parallel_ops.wait(parallel_ops.reduce(hidden @ down, group)) * 2 + x


def mlp_gradients(backend: str | None) -> dict[str, Any]:
    rank, group = dist.get_rank(), dist.group.WORLD
    assert group is not None
    generator = torch.Generator().manual_seed(0)
    x, up, down = (torch.randn(s, generator=generator) for s in ((3, 4), (4, 8), (8, 4)))
    half = slice(4 * rank, 4 * rank + 4)
    leaves = [t.detach().clone().requires_grad_() for t in (x, up[:, half], down[half])]
    run = sharded_mlp if backend is None else torch.compile(sharded_mlp, backend=backend)
    out = run(*leaves, group.group_name)
    (out**2).sum().backward()
    full = [t.detach().clone().requires_grad_() for t in (x, up, down)]
    expected = torch.relu(full[0] @ full[1]) @ full[2] * 2 + full[0]
    (expected**2).sum().backward()
    wanted = [full[0].grad, full[1].grad[:, half], full[2].grad[half]]
    errors = [
        (leaf.grad - want).abs().max().item() for leaf, want in zip(leaves, wanted, strict=True)
    ]
    return {"out": (out - expected).abs().max().item(), "grads": errors, "x": out.detach().numpy()}


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_values_and_gradients_equal_the_unsharded_net(two_ranks: Ranks, backend: str) -> None:
    results = two_ranks.run(mlp_gradients, backend)
    for result in results:
        assert result["out"] < 1e-5
        assert max(result["grads"]) < 1e-4
    numpy.testing.assert_array_equal(results[0]["x"], results[1]["x"])


def aot_targets() -> tuple[list[str], list[str]]:
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[list[str]] = []

    def keep(gm: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append([str(n.target) for n in gm.graph.nodes if n.op == "call_function"])
        return gm.forward

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    mlp_gradients(backend)  # type: ignore[arg-type]
    return graphs[0], graphs[1]


def test_collectives_stay_visible_after_autograd(two_ranks: Ranks) -> None:
    forward, backward = two_ranks.run(aot_targets)[0]
    launch, wait = "_c10d_functional.all_reduce.default", "_c10d_functional.wait_tensor.default"
    for graph in (forward, backward):
        assert graph.count(launch) == 1
        assert graph.count(wait) == 1
        assert not any("ladderize" in target for target in graph)


def test_the_two_ends_need_no_import_of_their_own() -> None:
    """As in the error messages."""
    code = "import ladderize; ladderize.parallel_ops.copy_to_ranks; ladderize.testing.eager_ladder"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_ops_may_enter_the_aot_cache() -> None:
    from torch._functorch._aot_autograd.autograd_cache import check_node_safe

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    check_node_safe(graph.call_function(parallel_ops.copy, (x, "group")))
    check_node_safe(graph.call_function(parallel_ops.reduce, (x, "group")))
    check_node_safe(graph.call_function(parallel_ops.wait, (x,)))
