"""Training on one device: the compiled ladder trains like the eager ladder."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.eager_ladders import tiny_llama, tokens
from helpers.reads import HEAD
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

import ladderize
from ladderize.testing import assert_close, eager_ladder

STEPS = 20
VIT = ["vit.*.*.layernorm_before", "vit.*.*.layernorm_after"]


def sentences(step: int) -> dict[str, Tensor]:
    ids = tokens(3, 6).roll(step, 0)
    return {"input_ids": ids, "labels": ids}


def llama() -> tuple[nn.Module, list[str], Callable[[int], dict[str, Tensor]]]:
    return tiny_llama(2), HEAD["llama"], sentences


def dropping_gpt2(
    layers: int = 2,
) -> tuple[nn.Module, list[str], Callable[[int], dict[str, Tensor]]]:
    config = GPT2Config(
        vocab_size=64,
        n_embd=16,
        n_layer=layers,
        n_head=2,
        n_positions=16,
        resid_pdrop=0.3,
        embd_pdrop=0.3,
        attn_pdrop=0.3,
        use_cache=False,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # else transformers logs that it takes this one: a graph break
    return model, HEAD["gpt2"], sentences


def vit() -> tuple[nn.Module, list[str], Callable[[int], dict[str, Tensor]]]:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )

    def batch(step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(3, 3, 8, 8, generator=generator)
        return {"pixel_values": images, "labels": torch.tensor([0, 1, 2])}

    return ViTForImageClassification(config), VIT, batch


def train(model: nn.Module, call: Any, batch: Callable[[int], dict[str, Tensor]]) -> list[float]:
    """The losses of `STEPS` steps of AdamW on `model`, computed by `call`."""
    torch.manual_seed(3)  # of the dropout
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(STEPS):
        loss = call(**batch(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def check_training(make: Any, dtype: torch.dtype, tolerance: float, **options: Any) -> None:
    model, reads, batch = make()
    model = model.to(dtype)

    def in_dtype(step: int) -> dict[str, Tensor]:
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch(step).items()}

    eager, standard = copy.deepcopy(model), copy.deepcopy(model)
    ladderize.compile(model, **options)
    found = train(model, model, in_dtype)
    with eager_ladder(eager, reads):
        wanted = train(eager, eager, in_dtype)
    without = train(standard, standard, in_dtype)
    assert found[-1] < found[0]
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= tolerance
    assert abs(without[-1] - wanted[-1]) > 100 * tolerance, "the two nets must differ to be told"
    weights, expected = dict(model.named_parameters()), dict(eager.named_parameters())
    assert_close(
        {name: p.detach() for name, p in weights.items()},
        {name: p.detach() for name, p in expected.items()},
        tolerance=tolerance,
    )


DEEP = pytest.mark.deep
LOWERINGS = [pytest.param("eager", marks=DEEP), "aot_eager"]


@pytest.mark.parametrize(
    ("make", "lowering"),
    [
        (llama, "aot_eager"),
        pytest.param(vit, "eager", marks=DEEP),
        pytest.param(llama, "eager", marks=DEEP),
        pytest.param(vit, "aot_eager", marks=DEEP),
    ],
)
def test_adamw_steps_equal_the_eager_ladders(make: Any, lowering: str) -> None:
    check_training(make, torch.float64, 1e-9, lowering=lowering)


@pytest.mark.deep
def test_adamw_steps_with_dropout_through_inductor() -> None:
    """In float64; but the loss is taken in float32, which Inductor rounds otherwise."""
    options = {"lowering_options": {"fallback_random": True}}  # eager's random numbers
    check_training(partial(dropping_gpt2, 1), torch.float64, 1e-5, **options)


# -- dropout


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_dropout_with_a_seed_equals_the_eager_ladders(lowering: str) -> None:
    model, reads, _ = dropping_gpt2(1)
    ids = tokens(2, 6)

    def run(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        logits = model.train()(input_ids=ids).logits
        (gradient,) = torch.autograd.grad(logits.square().mean(), [model.transformer.wte.weight])
        return logits.detach(), gradient

    standard = run(3)
    with eager_ladder(model, reads):
        wanted, other = run(3), run(4)
    assert not torch.allclose(wanted[0], other[0]), "the seed matters"
    assert not torch.allclose(wanted[0], standard[0]), "and so do the reads"
    ladderize.compile(model, lowering=lowering)
    assert_close(run(3), wanted)


def test_train_and_eval_are_two_compilations() -> None:
    (model, reads, _), ids = dropping_gpt2(1), tokens(2, 6)
    ladderize.compile(model, lowering="eager")
    counters.clear()
    with torch.no_grad():
        model.eval()
        first = model(input_ids=ids).logits
        model.train()
        dropped = [model(input_ids=ids).logits for _ in range(2)]
        model.eval()
        again = model(input_ids=ids).logits
    assert counters["stats"]["unique_graphs"] == 2
    assert torch.equal(first, again)
    assert not torch.allclose(*dropped)
    ladderize.restore(model)
    with torch.no_grad(), eager_ladder(model, reads):
        assert_close(first, model(input_ids=ids).logits)


# -- autocast


@pytest.mark.deep
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_autocast(lowering: str) -> None:
    """Values and gradients, as near as bfloat16 has them."""
    model, reads, batch = llama()
    found, wanted = [], []
    for results in (wanted, found):
        with torch.autocast("cpu", torch.bfloat16):
            if results is wanted:
                with eager_ladder(model, reads):
                    out = model(**batch(0))
            else:
                out = ladderize.compile(model, lowering=lowering)(**batch(0))
        assert out.logits.dtype == torch.bfloat16
        out.loss.backward()
        results += [out.logits.detach(), model.model.embed_tokens.weight.grad.clone()]
        model.zero_grad()
    assert_close(found[0], wanted[0], tolerance=3e-2)
    assert_close(found[1], wanted[1], tolerance=3e-2)
    ladderize.restore(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert (model(**batch(0)).logits - wanted[0]).abs().max() > 0.3


# -- checkpoints


def test_checkpoints_move_between_standard_and_ladder() -> None:
    standard, ids = tiny_llama(2), tokens()
    ladder = ladderize.compile(tiny_llama(2), lowering="eager")
    with torch.no_grad():
        for parameter in standard.parameters():
            parameter.mul_(1.1)
    assert ladder.state_dict().keys() == standard.state_dict().keys()
    ladder.load_state_dict(standard.state_dict())
    with torch.no_grad():
        found = ladder(input_ids=ids).logits
        with eager_ladder(standard, HEAD["llama"]):
            assert_close(found, standard(input_ids=ids).logits)
        back = tiny_llama(2)
        back.load_state_dict(ladder.state_dict())
        assert torch.equal(back(input_ids=ids).logits, standard(input_ids=ids).logits)
