"""transformers' continuous batching on a ladder: its tokens, its compilations, its errors."""

import copy

import peft
import pytest
import torch
from helpers.language_models import language_model
from helpers.reads import HEAD
from torch._dynamo.utils import counters
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig

import ladderize
from ladderize import LadderError
from ladderize.testing import eager_ladder

NEW_TOKENS = 5
LENGTHS = (5, 9, 21, 1)
MOST_GRAPHS = 6
"""Whether the cache is read, times one or several tokens, and one request's single token."""


def prompts(lengths=LENGTHS):
    some = torch.Generator().manual_seed(1)
    shared = torch.randint(1, 64, (16,), generator=some).tolist()
    own = [torch.randint(1, 64, (n,), generator=some).tolist() for n in lengths]
    return [shared[: n // 2] + ids[n // 2 :] for n, ids in zip(lengths, own, strict=True)]


def serve(model, texts=None, persistent_manager=False, **config):
    sizes = {"num_blocks": 24, "max_batch_tokens": 16, "page_size": 4} | config
    found = model.generate_batch(
        texts or prompts(),
        generation_config=GenerationConfig(
            max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=ContinuousBatchingConfig(**sizes),
        persistent_manager=persistent_manager,
    )
    assert all(answer.error is None for answer in found.values())
    return [answer.generated_tokens for answer in found.values()]


@torch.no_grad()
def greedy(model, texts=None):
    """Without a cache: every token from all those before it."""
    answers = []
    for text in texts or prompts():
        ids = torch.tensor([text])
        for _ in range(NEW_TOKENS):
            last = model(input_ids=ids, use_cache=False).logits[:, -1:]
            ids = torch.cat([ids, last.argmax(-1)], 1)
        answers.append(ids[0, len(text) :].tolist())
    return answers


def windows():
    """A sliding window in every other layer, and attention that sdpa cannot express."""
    return language_model("gemma2", sliding_window=4, attn_implementation="eager")


@pytest.mark.parametrize(
    ("make", "reads", "lowering"),
    [
        (lambda: language_model("llama"), HEAD["llama"], "eager"),
        (windows, HEAD["gemma2"], "eager"),
        pytest.param(
            lambda: language_model("llama"), HEAD["llama"], "inductor", marks=pytest.mark.deep
        ),
    ],
)
def test_the_tokens_are_the_eager_ladders(make, reads, lowering):
    """Prompts in chunks, decoding in between, prefixes in common; then a cache of another size."""
    model = make()
    whole = copy.deepcopy(model)
    standard = serve(model)
    assert standard == greedy(whole)
    with eager_ladder(whole, reads):
        expected = greedy(whole)
        alone = greedy(whole, prompts()[:1])
    assert expected != standard
    counters.clear()
    ladderize.compile(model, lowering=lowering)
    assert serve(model, num_blocks=40, max_batch_tokens=64) == expected
    assert serve(model) == expected
    assert serve(model, prompts()[:1]) == alone
    assert counters["stats"]["unique_graphs"] <= MOST_GRAPHS
    assert ladderize.last_report().diff()
    assert serve(copy.deepcopy(model)) == serve(ladderize.restore(model)) == standard


def test_an_error_of_the_compilation_is_raised():
    """transformers writes it to its log and returns empty answers."""
    model = ladderize.compile(language_model("llama"), lowering="eager", expect_blocks=7)
    with pytest.raises(LadderError, match="7 blocks were expected, 4 were found"):
        serve(model)


def test_what_transformers_compiles_around_the_model_calls_the_ladder():
    model = language_model("llama")
    with eager_ladder(model, HEAD["llama"]):
        expected = greedy(model, prompts()[:1])
    ladderize.compile(model, lowering="eager")
    around = CompileConfig(backend="eager", mode=None)
    assert serve(model, prompts()[:1], varlen_compile_config=around) == expected
    assert "init_continuous_batching" not in vars(ladderize.restore(model))


def test_a_version_that_was_not_tried_is_warned_of(monkeypatch):
    model = ladderize.compile(language_model("llama"), lowering="eager")
    monkeypatch.setattr("transformers.__version__", "6.0")
    with pytest.warns(ladderize.LadderWarning, match=r"transformers 6\.0 is untested.*5\.23"):
        model.init_continuous_batching()


@pytest.mark.deep
def test_adapters_and_a_manager_that_is_kept():
    adapters = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(language_model("llama"), adapters).eval()
    whole = copy.deepcopy(model).get_base_model()
    with eager_ladder(whole, HEAD["llama"]):
        expected = greedy(whole)
    ladderize.compile(model, lowering="eager")
    for _ in range(2):
        assert serve(model, persistent_manager=True) == expected
