"""`variant=` with `mesh=` on two real ranks, compiled by Inductor, whose code is checked."""

import pytest
import torch
import torch.distributed as dist
from helpers.ranks import mesh
from helpers.residual_forms import LAYERS, WIDTH, FormsNet

import ladderize
from ladderize import LadderError

FORMS = {
    "parallel": (lambda net, x: net.parallel(x), LAYERS),
    "desync:4": (lambda net, x: net.desync(x, 4), 2),
}


def compiled(net, **options):
    return torch.compile(
        net, backend="ladderize", fullgraph=True, options={"mesh": mesh(), **options}
    )


def inputs():
    return torch.linspace(-1, 1, 10 * WIDTH, dtype=torch.float64).view(2, 5, WIDTH)


def run(variant):
    """The error, what the variant changes, and the all-reduces of the report."""
    net, x = FormsNet(), inputs()
    form, _ = FORMS[variant]
    with torch.no_grad():
        found = compiled(net, variant=variant, verify="code")(x)
        wanted = form(net, x)
        changed = (wanted - net(x)).abs().max().item()
    launched = [c.op for c in ladderize.last_report().graphs[0].collectives]
    return (found - wanted).abs().max().item(), changed, launched.count("all_reduce")


@pytest.mark.parametrize("variant", FORMS)
def test_two_ranks_compute_the_variant(two_ranks, variant):
    for error, changed, reductions in two_ranks.run(run, variant):
        assert error <= 1e-5 < changed
        assert reductions == FORMS[variant][1]


def ahead_of_time(variant):
    """The error of what `parallelize` sharded, compiled."""
    net, x = FormsNet(), inputs()
    shard = ladderize.parallelize(net, mesh(), (x,), variant=variant)
    run = torch.compile(shard, backend="ladderize", fullgraph=True, options={"lowering": "eager"})
    with torch.no_grad():
        return (run(x) - FORMS[variant][0](net, x)).abs().max().item()


@pytest.mark.parametrize("variant", FORMS)
def test_what_is_sharded_ahead_of_time_computes_it_too(two_ranks, variant):
    assert max(two_ranks.run(ahead_of_time, variant)) <= 1e-5


def refused():
    """What ranks say that do not ask for the same variant."""
    variant = "desync:2" if dist.get_rank() else "desync:4"
    with torch.no_grad(), pytest.raises((LadderError, RuntimeError)) as caught:
        compiled(FormsNet(), variant=variant, lowering="eager")(inputs())
    return str(caught.value)


def test_ranks_that_ask_for_other_variants_are_refused(two_ranks):
    for text in two_ranks.run(refused):
        assert "variant = desync:4" in text and "variant = desync:2" in text
