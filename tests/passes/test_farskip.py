"""FarSkip's connectivity: values and gradients against eager nets, and what the report says."""

import pytest
import torch
from helpers.expert_nets import MODELS, InstellaNet, expert_model, farskip_logits


def _compiled(model, **options):
    options = {"connectivity": "farskip", "lowering": "eager", **options}
    return torch.compile(model, backend="ladderize", fullgraph=True, options=options)


def _assert_equal(found, wanted, standard):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert (found - standard).abs().max() > 1e-2  # else nothing was compared


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_equal_the_eager_net(name):
    model, ids = expert_model(name), torch.arange(12).view(2, 6)
    with torch.no_grad():
        found = _compiled(model)(ids).logits
        _assert_equal(found, farskip_logits(model, ids), model(ids).logits)


@pytest.mark.parametrize("connectivity", ["farskip", "instella"])
@pytest.mark.parametrize("post_norm", [False, True])
def test_an_instella_net_and_its_gradients(connectivity, post_norm):
    net, x = InstellaNet(post_norm=post_norm), torch.randn(2, 5, 16, dtype=torch.float64)
    found = _compiled(net, connectivity=connectivity)(x)
    wanted = net.farskip(x, dense_reads_early=connectivity == "instella")
    _assert_equal(found, wanted, net(x))
    weights = torch.randn_like(x)
    gradients = [
        torch.autograd.grad((result * weights).sum(), list(net.parameters()))
        for result in (found, wanted)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


def test_a_subset_of_the_blocks():
    model, ids = expert_model("DeepseekV3"), torch.arange(12).view(2, 6)
    chosen = [2, 4]
    with torch.no_grad():
        found = _compiled(model, blocks=chosen)(ids).logits
        _assert_equal(found, farskip_logits(model, ids, chosen), model(ids).logits)
