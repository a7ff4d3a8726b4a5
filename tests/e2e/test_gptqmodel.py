"""Packed linears of GPTQModel, as transformers loads them: sharded, or refused by the op's name.

It needs an environment of its own, as GPTQModel 7.6 pins another numpy than constraints.txt:

    pip install torch==2.13.0 transformers==5.23.0 optimum setuptools numpy
    BUILD_CUDA_EXT=0 pip install --no-build-isolation gptqmodel==7.6.0
    pip install -e '.[dev]' && pytest -n 0 tests/e2e/test_gptqmodel.py
"""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from helpers.language_models import language_model
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh

from ladderize import LadderError

pytest.importorskip("gptqmodel", reason="gptqmodel is not installed: its kernels were NOT tested")

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
IDS = torch.arange(12).reshape(2, 6)


def words(codes, order):
    """Eight values of 4 bits in each word, along the last dim."""
    packed = torch.zeros(*codes.shape[:-1], codes.shape[-1] // 8, dtype=torch.int32)
    for place, source in enumerate(order):
        packed |= codes[..., source::8].int() << (4 * place)
    return packed


def packed(method, weight):
    """The tensors of one linear: symmetric, so that all zero points are 8."""
    inputs, outputs = weight.shape[1], weight.shape[0]
    groups = weight.T.reshape(inputs // GROUP, GROUP, outputs)
    scales = groups.abs().amax(1) / 7
    codes = ((groups / scales[:, None]).round() + 8).reshape(inputs, outputs)
    if method == "awq":
        zeros = words(torch.full_like(scales, 8), AWQ_ORDER)
        return {"qweight": words(codes, AWQ_ORDER), "qzeros": zeros, "scales": scales.half()}
    return {
        "qweight": words(codes.T, range(8)).T.contiguous(),
        "qzeros": words(torch.full_like(scales, 7), range(8)),  # the format stores one less
        "scales": scales.half(),
        "g_idx": (torch.arange(inputs) // GROUP).int(),
    }


def saved(folder, method):
    model = language_model("llama", num_hidden_layers=2, hidden_size=64, intermediate_size=128)
    tensors = {}
    for name, value in model.state_dict().items():
        linear = name.removesuffix(".weight")
        if ".layers." in name and value.dim() == 2:
            tensors |= {f"{linear}.{kind}": t for kind, t in packed(method, value).items()}
        else:
            tensors[name] = value.clone()
    settings = {"quant_method": method, "bits": 4, "group_size": GROUP}
    settings |= {"desc_act": False, "sym": True} if method == "gptq" else {"zero_point": True}
    described = model.config.to_dict() | {"quantization_config": settings}
    described["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(described, default=str))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def loaded(path, backend):
    kinds = {"awq": transformers.AwqConfig, "gptq": transformers.GPTQConfig}
    described = json.loads(Path(path, "config.json").read_text())
    method = described["quantization_config"]["quant_method"]
    config = kinds[method](bits=4, group_size=GROUP, backend=backend)
    options = {"quantization_config": config, "dtype": torch.float32, "device_map": "cpu"}
    return transformers.AutoModelForCausalLM.from_pretrained(path, **options).eval()


def over_ranks(path, backend):
    """The largest difference from one process, or why it is refused."""
    model = loaded(path, backend)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.no_grad():
        model(IDS)  # a kernel's first call packs the weights again
        options = {"lowering": "eager"}
        expected = torch.compile(model, backend="ladderize", options=options)(IDS).logits
        torch._dynamo.reset()
        sharded = torch.compile(model, backend="ladderize", options=options | {"mesh": mesh})
        try:
            return float((sharded(IDS).logits - expected).abs().max())
        except LadderError as error:
            return str(error)


def test_awq_in_plain_tensor_ops(two_ranks, tmp_path):
    """The kernel computes in float16, whose sums over ranks round otherwise."""
    for error in two_ranks.run(over_ranks, saved(tmp_path, "awq"), "torch_awq"):
        assert error < 2e-2


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_kernel_is_refused_by_name(two_ranks, tmp_path, method):
    for refusal in two_ranks.run(over_ranks, saved(tmp_path, method), "auto"):
        assert "model.layers.{0-1}.self_attn.q_proj.qweight" in refusal
        assert "no sharding rule for aten._weight_int4pack_mm_for_cpu" in refusal
