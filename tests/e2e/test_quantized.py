"""Quantised weights are refused by name where they would have to be sharded, and run elsewhere."""

import pytest
import torch
import torch.distributed as dist
from helpers.graphs import Residual
from torch.distributed.device_mesh import init_device_mesh

import ladderize
from ladderize import LadderError

REASON = "torchao is not installed; .ci/run installs it for this file alone"
quantization = pytest.importorskip("torchao.quantization", reason=REASON)


def quantized():
    torch.manual_seed(0)
    model = Residual(3, 16).eval()
    only = quantization.Int8WeightOnlyConfig()
    quantization.quantize_(model, only, lambda _, name: name.endswith((".up", ".down")))
    return model


def x():
    return torch.randn(2, 16, generator=torch.Generator().manual_seed(1))


def named(text):
    assert "cannot be sharded" in text
    for layer in range(3):
        for name in ("up", "down"):
            assert f"layers.{layer}.{name}.weight is a Int8Tensor of torchao" in text
    assert "embed.weight" not in text
    return True


def sharded_by_the_backend():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    run = torch.compile(quantized(), backend="ladderize", options={"mesh": mesh})
    with torch.no_grad(), pytest.raises(LadderError) as caught:
        run(x())
    return str(caught.value)


def test_the_backend_refuses_them_by_name(two_ranks):
    assert all(map(named, two_ranks.run(sharded_by_the_backend)))


def test_parallelize_refuses_them_by_name():
    with pytest.raises(LadderError) as caught:
        ladderize.plan_parallel(quantized(), 2, (x(),))
    assert named(str(caught.value))


@pytest.mark.parametrize("lowering", ["eager", "inductor"])
def test_on_one_device_they_run_as_a_ladder(lowering):
    model = quantized()
    with torch.no_grad():
        found = torch.compile(model, backend="ladderize", options={"lowering": lowering})(x())
        expected, standard = model.ladder(x()), model(x())
    assert (found - expected).abs().max() <= 1e-5
    assert (found - standard).abs().max() > 1e-3
