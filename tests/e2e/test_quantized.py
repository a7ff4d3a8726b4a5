"""torchao's weights over a mesh: values and scales are sharded together, others are refused."""

import pytest
import torch
import torch.distributed as dist
from helpers.graphs import Residual
from helpers.language_models import language_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import ladderize
from ladderize import LadderError, compat
from ladderize.frontends.mesh.local_parts import PARTS

REASON = "torchao is not installed; .ci/run installs it for this file alone"
quantization = pytest.importorskip("torchao.quantization", reason=REASON)


def kinds():
    groups = quantization.PerGroup(8)
    return {
        "int8": quantization.Int8WeightOnlyConfig(),
        "int4": quantization.IntxWeightOnlyConfig(torch.int4, granularity=groups),
        "float8": quantization.Float8WeightOnlyConfig(),
        "int8 activations": quantization.Int8DynamicActivationInt8WeightConfig(),
    }


def quantized():
    torch.manual_seed(0)
    model = Residual(3, 16).eval()
    only = quantization.Int8WeightOnlyConfig()
    quantization.quantize_(model, only, lambda _, name: name.endswith((".up", ".down")))
    return model


def llama(kind):
    model = language_model("llama", num_hidden_layers=1).requires_grad_(False)
    quantization.quantize_(model, kinds()[kind], lambda module, _: is_in_layer(module, model))
    return model


def is_in_layer(module, model):
    return isinstance(module, nn.Linear) and module is not model.lm_head


def x():
    return torch.randn(2, 16, generator=torch.Generator().manual_seed(1))


def mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def num_bytes(weight):
    return sum(tensor.nbytes for tensor in compat.inner_tensors(weight).values())


def over_ranks(kind, lowering):
    """Errors against one process, with and without full weights; what a rank holds of them."""
    model, ids = llama(kind), torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        alone = torch.compile(model, backend="ladderize", options={"lowering": "eager"})
        expected = alone(ids).logits
        run = ladderize.compile(model, mesh=mesh(), lowering=lowering)
        errors = [float((run(ids).logits - expected).abs().max())]
        before = [t.clone() for p in model.parameters() for t in compat.inner_tensors(p).values()]
        freed = ladderize.release_full_parameters(model)
        errors.append(float((run(ids).logits - expected).abs().max()))
        parts = [part.local for p in model.parameters() for part in PARTS.of(p).values()]
        held = sum(map(num_bytes, parts))
        ladderize.restore_full_parameters(model)
    after = [t for p in model.parameters() for t in compat.inner_tensors(p).values()]
    is_back = all(map(torch.equal, before, after))
    return errors, held / freed, is_back


@pytest.mark.parametrize(
    ("kind", "lowering", "most"),
    [
        ("int8", "inductor", 0.56),  # scales of rows are whole where inputs are divided
        ("int4", "aot_eager", 0.5),
        ("float8", "aot_eager", 0.56),
    ],
)
def test_llama_over_two_ranks(two_ranks, kind, lowering, most):
    for errors, share, is_back in two_ranks.run(over_ranks, kind, lowering):
        assert max(errors) <= 1e-4
        assert 0.5 <= share <= most
        assert is_back


@pytest.mark.usefixtures("first_of_two")
def test_an_op_in_the_way_is_named():
    model = llama("int8 activations")
    run = torch.compile(model, backend="ladderize", options={"mesh": mesh()})
    with torch.no_grad(), pytest.raises(LadderError) as caught:
        run(torch.arange(12).reshape(2, 6))
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        said = f"layers.0.{name}.weight: aten.amin of what Int8Tensor multiplies"
        assert said in str(caught.value)


def test_parallelize_refuses_them_by_name():
    with pytest.raises(LadderError) as caught:
        ladderize.plan_parallel(quantized(), 2, (x(),))
    text = str(caught.value)
    assert "cannot be sharded" in text
    for layer in range(3):
        for name in ("up", "down"):
            assert f"layers.{layer}.{name}.weight is a Int8Tensor of torchao" in text
    assert "embed.weight" not in text


@pytest.mark.parametrize("lowering", ["eager", "inductor"])
def test_on_one_device_they_run_as_a_ladder(lowering):
    model = quantized()
    with torch.no_grad():
        found = torch.compile(model, backend="ladderize", options={"lowering": lowering})(x())
        expected, standard = model.ladder(x()), model(x())
    assert (found - expected).abs().max() <= 1e-5
    assert (found - standard).abs().max() > 1e-3
