"""`ladderize.compile`: what stays of a model, whom it reaches, which options hold where.

`test_generate.py` compares each step of a generation. Here the reference is the same call
of `generate` on a copy under `eager_ladder`, without a cache: it runs the whole sequence each step.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import transformers as hf
from helpers.eager_ladders import _enlarge, tiny_gpt2, tiny_llama, tokens
from helpers.reads import HEAD
from torch import Tensor, nn

import ladderize
from ladderize import LadderError, LadderWarning
from ladderize.testing import assert_close, eager_ladder

TOLERANCE = 1e-5


def tiny_t5() -> nn.Module:
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
    return _enlarge(
        hf.T5ForConditionalGeneration(
            hf.T5Config(**sizes, num_layers=2, decoder_start_token_id=0, dropout_rate=0.0)
        )
    )


# the model, and the modules whose input is what a block reads
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (lambda: tiny_llama(2), HEAD["llama"]),
    "gpt2": (lambda: tiny_gpt2(2), HEAD["gpt2"]),
    "t5": (tiny_t5, ["decoder.block.*.layer.*.layer_norm"]),
}
T5_ENCODER = ["block.*.layer.*.layer_norm"]


def compiled(family: str, **options: Any) -> tuple[Any, Any]:
    """A model that is a ladder, and a standard copy."""
    model = FAMILIES[family][0]()
    model.generation_config.update(pad_token_id=0, eos_token_id=None, use_cache=True)
    model.generation_config.eos_token_id = None
    eager = copy.deepcopy(model)
    return ladderize.compile(model, **{"lowering": "eager", **options}), eager


def generate(model: Any, length: int = 6, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The sequences, and the logits of each step; row b is padded on the left by b tokens."""
    mask = (torch.arange(length) >= torch.arange(3)[:, None]).long()
    torch.manual_seed(1)
    found = model.generate(
        input_ids=tokens(3, length) * mask,
        attention_mask=mask,
        **{"max_new_tokens": 4, "do_sample": False, **options},
        return_dict_in_generate=True,
        output_logits=True,
    )
    return found.sequences, list(found.logits)


@contextmanager
def as_ladder(family: str, model: Any, **how: Any) -> Iterator[None]:
    with ExitStack() as stack:
        if model.config.is_encoder_decoder:  # `generate` calls the encoder by itself
            stack.enter_context(eager_ladder(model.get_encoder(), T5_ENCODER, **how))
        stack.enter_context(eager_ladder(model, FAMILIES[family][1], **how))
        yield


def check(family: str, pair: tuple[Any, Any], how: Any = None, **options: Any) -> None:
    """Tokens and logits of each step: those of the eager ladder, and not of the standard model."""
    model, eager = pair
    found, logits = generate(model, **options)
    options.pop("cache_implementation", None)
    with as_ladder(family, eager, **(how or {})):
        wanted, expected = generate(eager, **options, use_cache=False)
    assert torch.equal(found, wanted)
    assert_close(logits, expected, tolerance=TOLERANCE)
    standard = generate(eager, **options)[1]
    assert (logits[0] - standard[0]).abs().max() > 1000 * TOLERANCE
    assert (logits[-1] - standard[-1]).abs().max() > 1000 * TOLERANCE


# -- generate


@pytest.mark.deep
def test_sampling_draws_the_eager_ladders_tokens() -> None:
    pair = compiled("gpt2", dynamic=True)
    check("gpt2", pair, do_sample=True, temperature=0.7)
    check("gpt2", pair, length=8, do_sample=True, top_p=0.8, max_new_tokens=2)


@pytest.mark.deep
def test_beams_reorder_the_cache() -> None:
    model, eager = compiled("llama")
    options = {"num_beams": 3, "max_new_tokens": 5}
    found, _ = generate(model, **options)
    with as_ladder("llama", eager):
        wanted, _ = generate(eager, **options, use_cache=False)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, generate(eager, **options)[0])


def test_an_encoder_and_a_static_cache() -> None:
    check("t5", compiled("t5"), cache_implementation="static")


@pytest.mark.deep
@pytest.mark.parametrize(
    ("options", "how"),
    [
        pytest.param({"layers": "last:1"}, {"chosen": [2, 3]}, marks=pytest.mark.deep),
        (
            {"blocks": [1, 3], "staleness": 2, "expect_blocks": 4},
            {"chosen": [1, 3], "staleness": 2},
        ),
    ],
)
def test_options_hold_at_every_step(options: dict[str, Any], how: dict[str, Any]) -> None:
    check("llama", compiled("llama", **options), how)


@pytest.mark.parametrize("cache", ["dynamic", pytest.param("static", marks=pytest.mark.deep)])
def test_dynamic_compiles_once_for_all_lengths(cache: str) -> None:
    model, _ = compiled("llama", dynamic=True)
    generate(model, cache_implementation=cache)
    with torch.compiler.set_stance("fail_on_recompile"):
        found, _ = generate(model, length=9, cache_implementation=cache, max_new_tokens=12)
    assert found.shape == (3, 9 + 12)


# -- what it reaches, and what it leaves alone


def test_copies_are_standard_nets() -> None:
    model, eager = compiled("llama")
    with torch.no_grad():
        standard = eager(tokens()).logits
        assert not torch.allclose(model(tokens()).logits, standard)
        assert torch.equal(copy.deepcopy(model)(tokens()).logits, standard)


def test_the_encoder_is_restored_too() -> None:
    model, eager = compiled("t5")
    with torch.no_grad():
        standard = eager.get_encoder()(tokens())[0]
        assert not torch.allclose(model.get_encoder()(tokens())[0], standard)
        ladderize.restore(model)
        assert torch.equal(model.get_encoder()(tokens())[0], standard)


@pytest.mark.parametrize("before", [None, True, False])
def test_the_setting_of_generate_is_restored(before: bool | None) -> None:
    model = tiny_llama(2)
    model.generation_config.disable_compile = before
    for _ in range(2):
        assert ladderize.compile(model, lowering="eager").generation_config.disable_compile is True
    assert ladderize.restore(model).generation_config.disable_compile is before


def test_every_count_that_an_encoder_alone_would_change_is_refused() -> None:
    counts = "would count other blocks"
    with pytest.raises(LadderError, match=counts) as caught:
        compiled("t5", layers="last:50%", expect_blocks=10)
    found = [str(blocker) for blocker in caught.value.blockers]
    assert found == ["expect_blocks=10", "layers='last:50%'"]
    with pytest.raises(LadderError, match=r"blocks=\[0\]"):
        compiled("t5", blocks=[0])
    compiled("t5", layers="1:2")


def test_generate_leaves_the_compilation_to_us() -> None:
    """Otherwise its backend would trace through the ladder and compile the standard model."""
    model, eager = compiled("llama")
    config = hf.CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": config}
    generate(eager, **options)
    assert hasattr(eager, "_compiled_call")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LadderWarning)
        generate(model, **options)
    assert not hasattr(model, "_compiled_call")
