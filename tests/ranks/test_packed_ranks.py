"""Packed linears on real ranks: values, what a rank holds, and what it reads of a checkpoint."""

from functools import partial

import pytest
import torch
from helpers.language_models import language_model
from helpers.packed_linears import AwqLinear, GptqLinear, packed
from helpers.ranks import mesh
from helpers.reads import HEAD
from safetensors.torch import save_file
from transformers import LlamaConfig

import ladderize
from ladderize import LadderError
from ladderize.frontends.from_pretrained import build_without_values
from ladderize.frontends.mesh.local_parts import PARTS
from ladderize.testing import eager_ladder

IDS = torch.arange(12).reshape(2, 6)
PACKED = 0.53  # of the bytes of packed layers: half, and scales of those that are cut by inputs


def llama():
    """Attention of the AWQ form, MLPs of the GPTQ form in act order."""
    model = language_model("llama", num_hidden_layers=1, hidden_size=64, intermediate_size=128)
    packed(model, partial(AwqLinear, group=8), "q_proj", "k_proj", "v_proj", "o_proj")
    act_order = partial(GptqLinear, group=32, is_shuffled=True)
    return packed(model, act_order, "gate_proj", "up_proj", "down_proj").requires_grad_(False)


def buffers(model):
    """Those of packed linears."""
    return [tensor for name, tensor in model.named_buffers() if "proj" in name]


def error(found):
    model = llama()
    with eager_ladder(model, HEAD["llama"]):
        return float((found.logits - model(IDS).logits).abs().max())


def compiled_and_released(lowering):
    model = llama()
    before = [tensor.clone() for tensor in buffers(model)]
    with torch.no_grad():
        run = ladderize.compile(model, mesh=mesh(), lowering=lowering)
        errors = [error(run(IDS))]
        held = buffers(model)
        ladderize.release_full_parameters(model)
        errors.append(error(run(IDS)))
        left = sum(tensor.untyped_storage().nbytes() for tensor in held)
        left += sum(part.local.nbytes for full in held for part in PARTS.of(full).values())
        ladderize.restore_full_parameters(model)
    is_back = all(map(torch.equal, before, buffers(model)))
    return max(errors), left / sum(tensor.nbytes for tensor in before), is_back


@pytest.mark.parametrize("lowering", ["eager", pytest.param("inductor", marks=pytest.mark.deep)])
def test_compiled_for_a_mesh(two_ranks, lowering):
    for largest, share, is_back in two_ranks.run(compiled_and_released, lowering):
        assert largest <= 1e-5
        assert 0.5 < share < PACKED
        assert is_back


def parallelized(path):
    shard = ladderize.parallelize(llama, mesh(), (IDS,), {"use_cache": False}, checkpoint=path)
    with torch.no_grad():
        largest = error(shard(IDS, use_cache=False))
    held = sum(tensor.nbytes for name, tensor in shard.state_dict().items() if "proj" in name)
    whole = llama().state_dict()
    return largest, held / sum(t.nbytes for name, t in whole.items() if "proj" in name)


def loaded_when_called(path):
    model = ladderize.parallelize(llama, mesh(), checkpoint=path, lowering="eager")
    assert hasattr(model, "generate")
    with torch.no_grad():
        largest = error(model(IDS))
    held = buffers(model)
    left = sum(tensor.untyped_storage().nbytes() for tensor in held)
    left += sum(part.local.nbytes for full in held for part in PARTS.of(full).values())
    return largest, left / sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize("load", [parallelized, loaded_when_called])
def test_slices_of_packed_words_are_read(two_ranks, tmp_path, load):
    path = str(tmp_path / "model.safetensors")
    save_file({name: t.contiguous() for name, t in llama().state_dict().items()}, path)
    for largest, share in two_ranks.run(load, path):
        assert largest <= 1e-5
        assert 0.5 < share < PACKED


def test_folders_that_only_a_library_can_load_are_refused(tmp_path):
    config = LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4})
    config.save_pretrained(tmp_path)
    with pytest.raises(LadderError, match=r"(?s)are quantized.*quantization_config of gptq"):
        build_without_values(tmp_path, None)
