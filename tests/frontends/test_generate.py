"""`ladderize.compile` and `generate`: prefill and every decode step are the ladder."""

import warnings
from typing import Any

import pytest
import torch
from helpers.eager_ladders import _enlarge, tiny_gpt2, tiny_llama
from helpers.reads import HEAD
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import CompileConfig, Gemma2Config, Gemma2ForCausalLM

import ladderize
from ladderize import LadderError, LadderWarning
from ladderize.testing import assert_close, eager_ladder

TOLERANCE = 1e-5
NEW_TOKENS = 4


def tiny_gemma2() -> nn.Module:
    """A sliding window of 4 in every other layer, shorter than the sequences."""
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        max_position_embeddings=64,
    )
    return _enlarge(Gemma2ForCausalLM(config))


FAMILIES = {
    "llama": (lambda: tiny_llama(2), HEAD["llama"]),
    "gpt2": (tiny_gpt2, HEAD["gpt2"]),
    "gemma2": (
        tiny_gemma2,
        HEAD["gemma2"],
    ),
}


def prompt() -> tuple[Tensor, Tensor]:
    """Two rows of five tokens, the first padded on the left by two; and the attention mask."""
    ids = torch.randint(1, 64, (2, 5), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    ids[0, :2] = mask[0, :2] = 0
    return ids, mask


def generate(model: nn.Module, **how: Any) -> Any:
    ids, mask = prompt()
    model.config.use_cache = model.generation_config.use_cache = True
    return model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        **({"do_sample": False} | how),
    )


def logits_of_whole_sequences(
    model: nn.Module, reads: list[str], sequences: Tensor
) -> list[Tensor]:
    """The eager ladder's logits of each new token, from all tokens before it, without a cache."""
    ids, mask = prompt()
    found = []
    with torch.no_grad(), eager_ladder(model, reads):
        for step in range(NEW_TOKENS):
            seen = torch.cat([mask, torch.ones(2, step, dtype=mask.dtype)], 1)
            found.append(
                model(
                    input_ids=sequences[:, : ids.shape[1] + step],
                    attention_mask=seen,
                    position_ids=(seen.cumsum(-1) - 1).clamp(min=0),
                    use_cache=False,
                ).logits[:, -1]
            )
    return found


def check(name: str, cache: str | None, options: dict[str, Any], **how: Any) -> None:
    make, reads = FAMILIES[name]
    model = make()
    standard = generate(model, **how).logits[0]
    counters.clear()
    ladderize.compile(model, **options)
    how |= {} if cache is None else {"cache_implementation": cache}
    with warnings.catch_warnings():
        warnings.simplefilter("error", LadderWarning)
        out = generate(model, **how)
    # The prompt, the decode steps; of a growing cache the first one, and all others.
    graphs = 2 if cache == "static" else 3
    assert counters["stats"]["unique_graphs"] == graphs
    ladderize.restore(model)
    wanted = logits_of_whole_sequences(model, reads, out.sequences)
    assert_close(list(out.logits), wanted, tolerance=TOLERANCE)
    assert (standard - wanted[0]).abs().max() > 1000 * TOLERANCE
    if not how.get("do_sample"):
        assert torch.equal(out.sequences[:, 5:], torch.stack(wanted, 1).argmax(-1))


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("llama", None),
        pytest.param("gemma2", "static", marks=pytest.mark.deep),
        pytest.param("llama", "static", marks=pytest.mark.deep),
        pytest.param("gemma2", None, marks=pytest.mark.deep),
        pytest.param("gpt2", None, marks=pytest.mark.deep),
        pytest.param("gpt2", "static", marks=pytest.mark.deep),
    ],
)
def test_greedy(name: str, cache: str | None) -> None:
    check(name, cache, {"lowering": "eager"})


@pytest.mark.deep
def test_a_part_of_the_layers_two_blocks_stale() -> None:
    model = tiny_llama(3)
    ladderize.compile(model, lowering="eager", layers="last:2", staleness=2)
    out = generate(model, cache_implementation="static")
    ladderize.restore(model)
    ids, mask = prompt()
    with torch.no_grad(), eager_ladder(model, HEAD["llama"], chosen=range(2, 6), staleness=2):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        first = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
    assert_close(out.logits[0], first, tolerance=TOLERANCE)


@pytest.mark.deep
def test_through_inductor() -> None:
    check("llama", "static", {})


# -- generate that compiles by itself


def compile_config() -> CompileConfig:
    config = CompileConfig(backend="ladderize", options={"lowering": "eager"}, mode=None)
    config._compile_all_devices = True  # else transformers compiles on accelerators only
    return config


def test_compile_config_alone_is_warned_of() -> None:
    model = tiny_llama(2)
    with pytest.warns(LadderWarning, match=r"Call ladderize\.compile\(model\) instead") as caught:
        generate(model, cache_implementation="static", compile_config=compile_config())
    assert "the prompt runs through the standard model" in str(caught[0].message)


# -- compile and restore


def test_compile_is_in_place_and_restored() -> None:
    model, (ids, mask) = tiny_llama(2), prompt()
    names = list(model.state_dict())
    with torch.no_grad():
        standard = model(ids, attention_mask=mask).logits
        assert ladderize.compile(model, lowering="eager") is model
        ladder = model(ids, attention_mask=mask).logits
        assert list(model.state_dict()) == names
        assert model.generation_config.disable_compile
        ladderize.compile(model, lowering="eager", staleness=0)  # the latest options hold
        assert_close(model(ids, attention_mask=mask).logits, standard)
        assert ladderize.restore(model) is model
        assert torch.equal(model(ids, attention_mask=mask).logits, standard)
    assert not model.generation_config.disable_compile
    assert not torch.allclose(ladder, standard)
    assert ladderize.restore(model) is model  # nothing left to take back


def test_a_plain_module() -> None:
    from helpers.graphs import Residual

    model, x = Residual(), torch.randn(3, 8)
    ladderize.compile(model, lowering="eager", dynamic=True, expect_blocks=4)
    torch.testing.assert_close(model(x), model.ladder(x))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(LadderError, match="takes a module, not a function"):
        ladderize.compile(lambda x: x)
    with pytest.raises(LadderError, match=r"wrapper returned by torch\.compile"):
        ladderize.compile(torch.compile(nn.Linear(2, 2)))
    with pytest.raises(LadderError, match="did you mean 'staleness'"):
        ladderize.compile(nn.Linear(2, 2), stalenes=1)
