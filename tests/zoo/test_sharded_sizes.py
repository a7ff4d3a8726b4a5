"""Some families over 2, 3, 4 and 8 ranks, and their gradients."""

import dataclasses
from typing import Any

import pytest
import torch
from lockstep import ShardedProgram

from ladderize.sharding.placement import Replicate, take_local
from ladderize.testing import assert_close
from zoo.decoders import OPT, SIZES, hugging_face
from zoo.encoder_decoders import T5_SIZES
from zoo.encoders import SIZES as BERT_SIZES
from zoo.family import Family
from zoo.sharded import TOLERANCE, check_over, expect, exported, run
from zoo.table import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:Not all is divided")
NAMED = {family.name: family for family in FAMILIES}


def sized(name: str, model: str, sizes: dict[str, Any], **changes: Any) -> Family:
    return dataclasses.replace(NAMED[name], make=hugging_face(model, **{**sizes, **changes}))


def decoder(name: str, model: str, heads: int, kv: int, **changes: Any) -> Family:
    sizes = {
        "hidden_size": 8 * heads,
        "intermediate_size": 12 * heads,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
    }
    return sized(name, model, {**SIZES, **sizes}, **changes)


def wide(heads: int, kv: int) -> list[Family]:
    """Families whose sizes divide over as many ranks as divide `heads`."""
    hidden = {"hidden_size": 8 * heads, "num_attention_heads": heads}
    falcon = {"parallel_attn": False, "alibi": True, "multi_query": False}
    t5 = {"d_model": 8 * heads, "num_heads": heads, "d_ff": 12 * heads}
    return [
        decoder("llama", "LlamaForCausalLM", heads, kv),
        decoder("gpt2", "GPT2LMHeadModel", heads, heads),
        decoder("bloom", "BloomForCausalLM", heads, heads),
        decoder("falcon (sequential)", "FalconForCausalLM", heads, heads, **falcon),
        decoder("gpt-neox (parallel)", "GPTNeoXForCausalLM", heads, heads, num_hidden_layers=3),
        decoder("phi3 (fused projections)", "Phi3ForCausalLM", heads, kv),
        decoder("opt", "OPTForCausalLM", heads, heads, **{**OPT, "ffn_dim": 12 * heads})
        if heads == 4
        else decoder("mixtral", "MixtralForCausalLM", heads, kv, num_local_experts=4),
        sized("bert", "BertForMaskedLM", {**BERT_SIZES, "intermediate_size": 12 * heads}, **hidden),
        sized("t5", "T5ForConditionalGeneration", T5_SIZES, **t5),
    ]


def few_keys(heads: int) -> list[Family]:
    """Fewer key heads than ranks: beside the queries' weight, and inside of it."""
    return [
        decoder("llama", "LlamaForCausalLM", heads, 2),
        decoder("llama", "LlamaForCausalLM", heads, 1),
        decoder("phi3 (fused projections)", "Phi3ForCausalLM", heads, 2),
        decoder("falcon (parallel)", "FalconForCausalLM", heads, 1, num_hidden_layers=3),
        decoder("gpt-bigcode", "GPTBigCodeForCausalLM", heads, 1, attn_pdrop=0.0, resid_pdrop=0.0),
    ]


CASES = [
    *((3, family) for family in wide(6, 3)),
    *((4, family) for family in wide(4, 4)),
    *((8, family) for family in wide(8, 8)),
    *((2, family) for family in few_keys(4)[3:]),
    *((4, family) for family in few_keys(4)),
    *((8, family) for family in few_keys(8)),
]


@pytest.mark.parametrize(
    ("num_ranks", "family"), [pytest.param(n, f, id=f"{f.name}-{n}") for n, f in CASES]
)
def test_any_number_of_ranks(num_ranks: int, family: Family) -> None:
    check_over(family, num_ranks, *exported(family))


# ---- gradients

TRAINED = [
    "llama",
    "gpt2",
    "bloom",
    "mixtral",
    "gpt-oss",
    "falcon (parallel)",
    "phi3 (fused projections)",
    "olmo2 (normed branches)",
    "llama4",
    "albert (shared weights)",
    "t5",
    "swin",
    "resnet (basic layers)",
    "nn.TransformerEncoder (pre-norm)",
]


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", TRAINED)
def test_gradients(name: str, num_ranks: int) -> None:
    """Each rank's gradient of its part of a parameter is that part of the eager gradient."""
    family = NAMED[name]
    torch.backends.mha.set_fastpath_enabled(False)
    model, program = exported(family)
    sharded = ShardedProgram(program, num_ranks)
    outputs = run(sharded, **family.feed())
    sum(_loss(found) for found in outputs).backward()
    _loss(expect(family, model, **family.feed())).backward()
    full = dict(model.named_parameters())
    compared = 0
    for rank, local in enumerate(sharded.local):
        for parameter, leaf in local.items():
            if leaf.grad is None:
                continue
            placement = sharded.plan.placements.get(parameter, Replicate())
            wanted = take_local(full[parameter].grad, placement, rank, num_ranks)
            assert_close(leaf.grad, wanted, tolerance=TOLERANCE, what=f"{parameter} on {rank}")
            compared += 1
    assert compared >= 10 * num_ranks


def _loss(outputs: list[torch.Tensor]) -> torch.Tensor:
    return sum(out.sin().mean() for out in outputs if out.requires_grad)
