"""`generate` of a ladder in its other modes: speculation, chunks, windows, hybrid caches.

The tokens are those of the eager ladder, which computes each from all those before it.
"""

import copy

import pytest
import torch
import transformers
from helpers.language_models import SIZES, language_model
from torch import nn
from torch._dynamo.utils import counters

import ladderize
from ladderize.testing import eager_ladder

NEW_TOKENS = 8
IDS = torch.tensor([[5, 9, 5, 9, 33, 5, 9, 33, 17]])
PRE_NORM = ["model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm"]
BEFORE_FF = ["model.layers.*.input_layernorm", "model.layers.*.pre_ff_layernorm"]
STATE = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 0,
    "mlp_only_layers": [0, 1],
}
ONE_LAYER = {"num_hidden_layers": 1}


def drafter(compiled):
    """A model of one layer that proposes tokens, as a ladder or a standard model."""
    model = language_model("llama", use_cache=True, **ONE_LAYER)
    return ladderize.compile(model, lowering="eager") if compiled else model


def model_of(family, **options):
    torch.manual_seed(0)
    cls = getattr(transformers, f"{family}ForCausalLM")
    sizes = SIZES | {"use_cache": True, "eos_token_id": None}
    model = cls(cls.config_class(**sizes | options)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # theirs are small: a ladder would be near the standard model
            nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def greedy(model):
    ids = IDS
    for _ in range(NEW_TOKENS):
        last = model(input_ids=ids, use_cache=False).logits[:, -1:]
        ids = torch.cat([ids, last.argmax(-1)], 1)
    return ids


def generate(model, **how):
    how |= {"attention_mask": torch.ones_like(IDS), "max_new_tokens": NEW_TOKENS}
    return model.generate(IDS, do_sample=False, **how)


def deep(*values):
    return pytest.param(*values, marks=pytest.mark.deep)


LLAMA = ("Llama", {}, PRE_NORM)
MODES = [  # model; what generate is asked for; the most graphs
    (*LLAMA, lambda: {"assistant_model": drafter(compiled=False)}, 5),
    deep(*LLAMA, lambda: {"assistant_model": drafter(compiled=True)}, 8),
    deep(*LLAMA, lambda: {"prompt_lookup_num_tokens": 3}, 5),
    (*LLAMA, lambda: {"prefill_chunk_size": 4}, 4),
    deep(*LLAMA, lambda: {"prefill_chunk_size": 4, "cache_implementation": "static"}, 4),
    ("Mistral", {"sliding_window": 4}, PRE_NORM, dict, 4),
    deep("Mistral", {"sliding_window": 4}, PRE_NORM, lambda: {"cache_implementation": "static"}, 3),
    ("Bamba", {**STATE, "mamba_chunk_size": 4, "attn_layer_indices": [1]}, BEFORE_FF, dict, 3),
    deep("Qwen3Next", LINEAR, PRE_NORM, dict, 3),
    deep("Qwen3Next", LINEAR, PRE_NORM, lambda: {"cache_implementation": "static"}, 2),
]


@pytest.mark.parametrize(("family", "options", "reads", "how", "most_graphs"), MODES)
def test_the_tokens_are_the_eager_ladders(family, options, reads, how, most_graphs):
    model = model_of(family, **options)
    whole = copy.deepcopy(model)
    standard = generate(model, **how())
    assert torch.equal(standard, greedy(whole))
    with eager_ladder(whole, reads):
        expected = greedy(whole)
    assert not torch.equal(expected, standard)
    ladderize.compile(model, lowering="eager")
    asked = how()
    counters.clear()
    assert torch.equal(generate(model, **asked), expected)
    assert torch.equal(generate(model, **asked), expected)
    assert counters["stats"]["unique_graphs"] <= most_graphs
    assert torch.equal(generate(ladderize.restore(model), **how()), standard)


@pytest.mark.deep
def test_leaving_early_to_draft():
    """The ladder's first layer proposes tokens. Two depths take more graphs than torch allows."""
    model = model_of("Llama", num_hidden_layers=3)
    whole = copy.deepcopy(model)
    with eager_ladder(whole, PRE_NORM):
        expected = greedy(whole)
    ladderize.compile(model, lowering="eager")
    with torch._dynamo.config.patch(recompile_limit=16):
        assert torch.equal(generate(model, assistant_early_exit=1), expected)
