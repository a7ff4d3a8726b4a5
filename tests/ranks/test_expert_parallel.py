"""Experts on different ranks: what the ladder of one process computes, its all-to-alls hidden."""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from helpers.expert_nets import ExpertNet, eager_expert_ladder, net_of_rank
from helpers.parallel_nets import VOCABULARY
from torch import Tensor

import ladderize
from ladderize.backends.emitted import check_emitted, order_string, read_events
from ladderize.testing.emitted_code import record_emitted_code

LAYERS = 2
CLOSE = 1e-5


@dataclass(frozen=True)
class Errors:
    """The largest, against the ladder and the standard net of one process; and the gradients'."""

    ladder: float
    standard: float
    gradient: float
    order: str = ""


def ids_of(rank: int, tokens: str) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(VOCABULARY, (2, 8), generator=generator)
    return ids if tokens == "mixed" else torch.full_like(ids, rank)


def errors(form: str, tokens: str, lowering: str) -> Errors:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    net, whole = net_of_rank(LAYERS, form, rank, ranks), ExpertNet(LAYERS, form)
    options = {"lowering": lowering, "verify": "code" if lowering == "inductor" else "graph"}
    run = torch.compile(net, backend="ladderize", fullgraph=True, options=options)
    ids = [ids_of(each, tokens) for each in range(ranks)]
    with record_emitted_code() as sources:
        found = run(ids[rank])
        found.square().mean().backward()
    wanted = [eager_expert_ladder(whole, each) for each in ids]
    torch.stack([each.square().mean() for each in wanted]).sum().backward()
    return Errors(
        float((found - wanted[rank]).abs().max()),
        float((found - whole(ids[rank])).abs().max()),
        gradient_error(net, whole),
        "".join(f"{order_string(read_events(source))}\n" for source in sources),
    )


def gradient_error(net: ExpertNet, whole: ExpertNet) -> float:
    """Of an expert, all ranks' tokens; of the rest the sum over the ranks is that of one process."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    worst = 0.0
    for (name, part), (_, other) in zip(
        net.named_parameters(), whole.named_parameters(), strict=True
    ):
        grad = torch.zeros_like(part) if part.grad is None else part.grad.clone()
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


@pytest.mark.parametrize("tokens", ["mixed", "alike"])
@pytest.mark.parametrize("form", ["capacity", "exact"])
def test_two_ranks(two_ranks, form, tokens):
    """Alike tokens overflow one expert of each rank, and leave others without any."""
    check(two_ranks.run(errors, form, tokens, "aot_eager"))
