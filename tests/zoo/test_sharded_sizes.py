"""Some families over 2, 3, 4 and 8 ranks."""

import dataclasses
from typing import Any

import pytest

from zoo.decoders import OPT, SIZES, hugging_face
from zoo.encoder_decoders import T5_SIZES
from zoo.encoders import SIZES as BERT_SIZES
from zoo.family import Family
from zoo.programs import traced
from zoo.sharded import check_over
from zoo.table import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:Not everything is sharded")
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


def grouped(heads: int, kv: int) -> list[Family]:
    """Two heads of queries to one of keys, over as many ranks as divide `kv`."""
    return [
        decoder("llama", "LlamaForCausalLM", heads, kv),
        decoder("phi3 (fused projections)", "Phi3ForCausalLM", heads, kv),
        decoder("mixtral", "MixtralForCausalLM", heads, kv, num_local_experts=4),
    ]


def of_one_size(heads: int) -> list[Family]:
    """As many heads of keys as of queries, over as many ranks as divide them."""
    hidden = {"hidden_size": 8 * heads, "num_attention_heads": heads}
    opt = {**OPT, "ffn_dim": 12 * heads}
    falcon = {"parallel_attn": False, "alibi": True, "multi_query": False}
    t5 = {"d_model": 8 * heads, "num_heads": heads, "d_ff": 12 * heads}
    return [
        decoder("gpt2", "GPT2LMHeadModel", heads, heads),
        decoder("bloom", "BloomForCausalLM", heads, heads),
        decoder("falcon (sequential)", "FalconForCausalLM", heads, heads, **falcon),
        decoder("gpt-neox (parallel)", "GPTNeoXForCausalLM", heads, heads, num_hidden_layers=3),
        decoder("opt", "OPTForCausalLM", heads, heads, **opt),
        sized("bert", "BertForMaskedLM", {**BERT_SIZES, "intermediate_size": 12 * heads}, **hidden),
        sized("t5", "T5ForConditionalGeneration", T5_SIZES, **t5),
    ]


def few_keys(heads: int) -> list[Family]:
    """Fewer key heads than ranks: in a separate weight, and fused with the queries."""
    return [
        decoder("llama", "LlamaForCausalLM", heads, 2),
        decoder("phi3 (fused projections)", "Phi3ForCausalLM", heads, 2),
        decoder("llama", "LlamaForCausalLM", heads, 1),
        decoder("falcon (parallel)", "FalconForCausalLM", heads, 1, num_hidden_layers=3),
        decoder("gpt-bigcode", "GPTBigCodeForCausalLM", heads, 1, attn_pdrop=0.0, resid_pdrop=0.0),
    ]


# What the heads are like, over how many ranks. The cases of a family follow one another, so that it
# is exported once.
CASES = {
    f"{family.name}, {heads}-{num_ranks}": (num_ranks, family)
    for heads, families, numbers in [
        ("grouped", grouped(24, 12), (3, 4)),
        ("of one size", of_one_size(24), (3, 4, 8)),
        ("two for keys", few_keys(8)[:2], (4, 8)),
        ("few for keys", few_keys(8)[2:], (2, 4, 8)),
    ]
    for family in families
    for num_ranks in numbers
}
# In every run: heads that 3 divides, experts, a relative bias, fused weights, keys that are kept.
EVERY_RUN = {
    "mixtral, grouped-3",
    "bloom, of one size-8",
    "t5, of one size-3",
    "phi3 (fused projections), two for keys-4",
    "phi3 (fused projections), two for keys-8",
    "llama, few for keys-8",
    "gpt-bigcode, few for keys-4",
}


@pytest.mark.parametrize(
    ("num_ranks", "family"),
    [
        pytest.param(*case, id=name, marks=[] if name in EVERY_RUN else [pytest.mark.deep])
        for name, case in CASES.items()
    ],
)
def test_any_number_of_ranks(num_ranks: int, family: Family) -> None:
    check_over(traced(family, symbolic=False), num_ranks)


def test_those_of_every_run_are_cases() -> None:
    assert CASES.keys() >= EVERY_RUN
