"""`generate` over a mesh: the tokens of one process, and caches of local size."""

import warnings

import pytest
import torch
import torch.distributed as dist
import transformers
from helpers.ranks import mesh
from torch.utils import _pytree as pytree

import ladderize
from ladderize import LadderError, LadderWarning
from ladderize.graph.local_heads import all_heads, own_heads

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 95,
    "pad_token_id": 0,
    "initializer_range": 0.3,
    "use_cache": True,
}
GROUPED = {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16}
WINDOWED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "llama": GROUPED,
    "gpt2": {"n_positions": 64},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 64},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma3_text": GROUPED | WINDOWED,
    "gpt_oss": GROUPED | WINDOWED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba2": {
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 8,
        "n_groups": 2,
        "chunk_size": 4,
    },
    "qwen3_next": GROUPED
    | {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention"],
    },
}
PROMPT = torch.arange(2, 16).reshape(2, 7)
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def new_model(family, **changes):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SHAPE | FAMILIES[family] | changes)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def generated(model, prompt=PROMPT, **how):
    """The tokens, and the bytes of the cache that made them."""
    made = model.generate(prompt, return_dict_in_generate=True, **how)
    kept = [layer for layer in made.past_key_values.layers if hasattr(layer, "keys")]
    return made.sequences.tolist(), sum(layer.keys.nbytes + layer.values.nbytes for layer in kept)


def on_both(model, how):
    """What is generated in one process and over the mesh, and the warnings of the latter."""
    results = []
    for options in ({}, {"mesh": mesh()}):
        torch._dynamo.reset()
        ladderize.compile(model, lowering="eager", **options)
        torch.manual_seed(dist.get_rank() if options else 0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append(generated(model, **how))
        ladderize.restore(model)
    return *results, [str(w.message) for w in caught if isinstance(w.message, LadderWarning)]


def compared(family, run):
    """Whether the tokens are equal, the cache's share of one process's, warnings."""
    (one, held_by_one), (two, held), warned = on_both(new_model(family), RUNS[run])
    return one == two, held / held_by_one if held_by_one else None, warned


MASK = torch.ones_like(PROMPT)
MASK[0, :3] = 0
RUNS = {
    "growing": GREEDY,
    "static": GREEDY | {"cache_implementation": "static"},
    "padded beams": GREEDY | {"attention_mask": MASK, "num_beams": 3},
    "sampled, static": {
        "max_new_tokens": 6,
        "do_sample": True,
        "top_k": 20,
        "cache_implementation": "static",
    },
}
"""The ranks have different seeds."""


@pytest.mark.parametrize("run", ["padded beams", "sampled, static"])
def test_ways_to_generate(two_ranks, run):
    for are_equal, share, warned in two_ranks.run(compared, "llama", run):
        assert (are_equal, share) == (True, 0.5)
        assert warned == []


DEEP = [(family, "growing") for family in ("opt", "falcon", "gpt_oss")]


@pytest.mark.parametrize(
    ("family", "run"),
    [
        ("gpt2", "static"),
        ("gemma3_text", "static"),
        *(pytest.param(*row, marks=pytest.mark.deep) for row in DEEP),
    ],
)
def test_families(two_ranks, family, run):
    for are_equal, share, _ in two_ranks.run(compared, family, run):
        assert (are_equal, share) == (True, 0.5)


class StopsAt(transformers.StoppingCriteria):
    """Stops at one of these lengths, another on each rank."""

    def __init__(self, *lengths):
        self.length = lengths[dist.get_rank()]

    def __call__(self, input_ids, *_, **__):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def lengths():
    """How many tokens come out, of a ladder over the mesh and of the restored model."""
    model = ladderize.compile(new_model("llama"), lowering="eager", mesh=mesh())
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1}
    made = [
        model.generate(PROMPT, **how, max_time=1e9 if dist.get_rank() == 0 else 1e-9),
        model.generate(PROMPT, **how, stopping_criteria=[StopsAt(10, 8)]),
        model.generate(PROMPT, **how, stopping_criteria=[StopsAt(8, 10)]),
        ladderize.restore(model).generate(PROMPT, **how, stopping_criteria=[StopsAt(8, 10)]),
    ]
    return [tokens.shape[1] for tokens in made]


def test_ranks_stop_where_the_first_one_stops(two_ranks):
    first, second = two_ranks.run(lengths, timeout=60)
    assert first == [13, 10, 8, 8]
    assert second == [13, 10, 8, 10]


def there_and_back():
    """Errors of the heads of all ranks, and of the gradient, in eager mode."""
    x = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    how = 1, 4, 2, mesh().get_group().group_name
    own = own_heads(x, *how)
    every = all_heads(own, *how)
    every.sin().sum().backward()
    part = x[:, dist.get_rank() // 2, None]
    errors = (own - part).abs().max(), (every - x).abs().max(), (x.grad - x.cos()).abs().max()
    return [float(error) for error in errors]


@pytest.mark.deep
def test_two_key_heads_over_four_ranks(four_ranks):
    for are_equal, share, _ in four_ranks.run(compared, "llama", "growing"):
        assert (are_equal, share) == (True, 0.5)
    for errors in four_ranks.run(there_and_back):
        assert errors == [0, 0, 0]


@pytest.mark.parametrize(
    ("family", "share"),
    [("mamba2", None), pytest.param("qwen3_next", 0.5, marks=pytest.mark.deep)],
)
def test_states_of_mixers_are_kept_by_parts(two_ranks, family, share):
    """Each rank keeps only its part of the mixers' states and computes with it."""
    for *found, warned in two_ranks.run(compared, family, "growing"):
        assert found == [True, share]
        assert not any("mixer" in text or "linear_attn" in text for text in warned)


def cache_costs(family, run, changes):
    """The bytes of a cache that one process fills, and those that the report counts as whole."""
    model = new_model(family, **changes)
    made = model.generate(PROMPT, return_dict_in_generate=True, **RUNS[run]).past_key_values
    held = [t for layer in made.layers for t in pytree.tree_leaves(vars(layer))]
    size = sum(t.nbytes for t in held if isinstance(t, torch.Tensor) and t.dim() > 1)
    ladderize.compile(model, lowering="eager", mesh=mesh())
    generated(model, **RUNS[run])
    return size, ladderize.last_report().graphs[-1].sharding.cache_bytes


@pytest.mark.parametrize(
    ("family", "run", "changes"),
    [("mamba2", "growing", {}), ("llama", "sampled, static", {"num_key_value_heads": 1})],
)
def test_the_report_tells_what_caches_cost(two_ranks, family, run, changes):
    for size, beyond_share in two_ranks.run(cache_costs, family, run, changes):
        assert beyond_share == size // 2


def filled_elsewhere():
    """The error for a cache with states of another model."""
    model = new_model("mamba2")
    with torch.no_grad():
        cache = model(PROMPT, use_cache=True).cache_params
        ladderize.compile(model, mesh=mesh(), lowering="eager")
        with pytest.raises(LadderError) as caught:
            model(PROMPT[:, :1], cache_params=cache)
    return str(caught.value)


def test_states_made_elsewhere_are_refused(two_ranks):
    for message in two_ranks.run(filled_elsewhere):
        assert "made outside of the mesh" in message
