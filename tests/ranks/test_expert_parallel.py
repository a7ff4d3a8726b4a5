"""Experts on different ranks: values of the one-process ladder, with hidden all-to-alls."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.expert_parallel_nets import ExpertNet, eager_expert_ladder, eager_farskip, net_of_rank
from helpers.parallel_nets import VOCABULARY
from torch import Tensor
from torch.distributed.tensor import DTensor

from ladderize.backends.emitted import check_emitted, order_string, read_events
from ladderize.testing.emitted_code import record_emitted_code

LAYERS = 2
CLOSE = 1e-5


@dataclass(frozen=True)
class Errors:
    """The largest, against the ladder and the standard model of one process; and the gradients'."""

    ladder: float
    standard: float
    gradient: float
    order: str = ""


def ids_of(rank: int, tokens: str) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(VOCABULARY, (2, 8), generator=generator)
    return ids if tokens == "mixed" else torch.full_like(ids, rank)


def errors(form: str, tokens: str, lowering: str, connectivity: str = "ladder") -> Errors:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    net, whole = net_of_rank(LAYERS, form, rank, ranks), ExpertNet(LAYERS, form)
    options = {
        "lowering": lowering,
        "verify": "code" if lowering == "inductor" else "graph",
        "connectivity": connectivity,
    }
    eager = eager_farskip if connectivity == "farskip" else eager_expert_ladder
    run = torch.compile(net, backend="ladderize", fullgraph=True, options=options)
    ids = [ids_of(each, tokens) for each in range(ranks)]
    with record_emitted_code() as sources:
        found = run(ids[rank])
        found.square().mean().backward()
    wanted = [eager(whole, each) for each in ids]
    torch.stack([each.square().mean() for each in wanted]).sum().backward()
    return Errors(
        float((found - wanted[rank]).abs().max()),
        float((found - whole(ids[rank])).abs().max()),
        gradient_error(net, whole),
        "".join(f"{order_string(read_events(source))}\n" for source in sources),
    )


def gradient_error(net: ExpertNet, whole: ExpertNet) -> float:
    """An expert has all ranks' tokens; of the rest the ranks' sum is that of one process."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    worst = 0.0
    for (name, part), (_, other) in zip(
        net.named_parameters(), whole.named_parameters(), strict=True
    ):
        grad = torch.zeros_like(part) if part.grad is None else part.grad.clone()
        grad = grad.to_local() if isinstance(grad, DTensor) else grad
        if name.endswith(("up", "down")):
            wanted = other.grad.chunk(ranks)[rank]
        else:
            dist.all_reduce(grad)
            wanted = other.grad
        worst = max(worst, float((grad - wanted).abs().max()))
    return worst


def check(found: list[Errors]) -> None:
    for each in found:
        assert each.ladder <= CLOSE
        assert each.gradient <= CLOSE
        assert each.standard > 0.05


@pytest.mark.parametrize(
    ("form", "tokens", "lowering"),
    [
        ("exact", "mixed", "aot_eager"),
        ("exact", "alike", "aot_eager"),
        ("capacity", "alike", "inductor"),
        ("dtensor", "mixed", "aot_eager"),
        ("dtensor", "alike", "inductor"),
    ],
)
def test_two_ranks(two_ranks, form, tokens, lowering):
    """Alike tokens overflow one expert of each rank, and leave others without any."""
    check(two_ranks.run(errors, form, tokens, lowering))


def test_two_ranks_of_farskip(two_ranks):
    check(two_ranks.run(errors, "capacity", "mixed", "aot_eager", "farskip"))


@pytest.mark.parametrize("connectivity", ["ladder", "farskip"])
def test_four_ranks(four_ranks, connectivity):
    check(four_ranks.run(errors, "exact", "mixed", "aot_eager", connectivity))


def called(source: str) -> list[str]:
    """Launches, waits and products of emitted code, in order: `mm`, `wait_tensor`."""
    names = (
        r"\b(all_to_all_single|wait_tensor|mm|bmm|cumsum|_scaled_dot_product\w+)(?:\.default)?\("
    )
    lines = (line.split("#")[0] for line in source.splitlines() if "assert_" not in line)
    return [found[1] for line in lines if (found := re.search(names, line))]


@pytest.mark.usefixtures("first_of_two")
def test_the_code_on_the_page_is_what_is_emitted():
    run = torch.compile(net_of_rank(LAYERS, "capacity", 0, 2), backend="ladderize", fullgraph=True)
    with torch.no_grad(), record_emitted_code() as sources:
        run(ids_of(0, "mixed"))
    (source,) = sources
    check_emitted(source)
    page = (Path(__file__).parents[2] / "docs" / "experts.md").read_text()
    shown = called(page.split("<!-- emitted: ")[1].split("```")[1])
    emitted = called(source)
    start = [i for i, name in enumerate(emitted) if name == "all_to_all_single"][1]
    assert emitted[start : start + len(shown)] == shown
    assert shown.count("wait_tensor") == 2
