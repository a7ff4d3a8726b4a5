"""transformers models compiled by the backend, against hand-written ladders."""

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import pytest
import torch
from helpers.eager_ladders import (
    Reads,
    bert_ladder,
    gpt2_ladder,
    llama_ladder,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tokens,
)
from torch import Tensor, nn

from ladderize.testing import Differences, assert_close, run_with_gradients

MODELS = {
    "llama": (tiny_llama, llama_ladder),
    "gpt2": (tiny_gpt2, gpt2_ladder),
    "bert": (tiny_bert, bert_ladder),
}
TOLERANCE = 1e-5  # of the issue, absolute: the logits are of order 1
LAYERS = 4
ALL = range(2 * LAYERS)

# options, and the blocks (two a layer) that they mean for 4 layers
SELECTIONS = {
    "all": ({}, ALL),
    "last:50%": ({"layers": "last:50%"}, range(4, 8)),
    "range": ({"layers": "1:3"}, range(2, 6)),
    "list": ({"layers": [0, 2]}, [0, 1, 4, 5]),
    "blocks": ({"blocks": [3, 6]}, [3, 6]),
}


def compare(
    model: nn.Module,
    ladder: Callable[..., Tensor],
    chosen: Any,
    staleness: int,
    options: dict[str, Any],
    **compile_options: Any,
) -> Differences:
    """Compile `model`, and compare its logits and gradients with the eager ladder."""
    options = {"staleness": staleness, "lowering": "eager", **options}
    compiled = torch.compile(
        model, backend="ladderize", fullgraph=True, options=options, **compile_options
    )
    ids = (tokens(),)
    found = run_with_gradients(lambda ids: compiled(input_ids=ids).logits, model, ids)
    wanted = run_with_gradients(lambda ids: ladder(model, ids, chosen, staleness), model, ids)
    return Differences(
        assert_close(found[0], wanted[0], tolerance=TOLERANCE),
        assert_close(found[1], wanted[1], tolerance=TOLERANCE, what="gradient"),
    )


# -- the hand-written ladders themselves


def test_reads_follow_the_recurrence() -> None:
    reads = Reads({1, 2, 4}, staleness=1)
    assert [reads.next(x) for x in ("x0", "x1", "x2", "x3", "x4")] == "x0 x0 x1 x3 x3".split()
    reads = Reads(range(5), staleness=2)
    assert [reads.next(x) for x in ("x0", "x1", "x2", "x3", "x4")] == "x0 x0 x0 x1 x2".split()


@pytest.mark.parametrize("name", MODELS)
def test_eager_ladder_without_staleness_is_the_model(name: str) -> None:
    make, ladder = MODELS[name]
    model = make()
    with torch.no_grad():
        expected = model(input_ids=tokens()).logits
        assert torch.equal(ladder(model, tokens(), ALL, 0), expected)
        assert torch.equal(ladder(model, tokens(), [], 1), expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("block", range(1, 6))
def test_each_stale_read_shows_in_the_logits(name: str, block: int) -> None:
    """A comparison with these ladders can fail: each read changes the logits noticeably."""
    make, ladder = MODELS[name]
    model = make()
    with torch.no_grad():
        standard = ladder(model, tokens(), [], 1)
        ladders = [ladder(model, tokens(), [block], staleness) for staleness in (1, 2)]
    assert (ladders[0] - standard).abs().max() > 1000 * TOLERANCE
    if block > 1:
        assert (ladders[0] - ladders[1]).abs().max() > 1000 * TOLERANCE


# -- compiled


def some(cases: Iterable[tuple[Any, ...]], *every_run: tuple[Any, ...]) -> list[Any]:
    """The cases, all but `every_run` only under --deep."""
    cases = list(cases)
    assert set(every_run) <= set(cases)
    return [
        pytest.param(*case, marks=[] if case in every_run else [pytest.mark.deep]) for case in cases
    ]


@pytest.mark.parametrize(
    ("selection", "staleness"),
    some(product(SELECTIONS, (0, 1, 2)), ("last:50%", 2), ("blocks", 1)),
)
def test_llama(selection: str, staleness: int) -> None:
    options, chosen = SELECTIONS[selection]
    compare(tiny_llama(LAYERS), llama_ladder, chosen, staleness, options)


@pytest.mark.deep
@pytest.mark.parametrize("selection", ["all", "last:50%"])
def test_llama_through_aot(selection: str) -> None:
    options, chosen = SELECTIONS[selection]
    compare(tiny_llama(LAYERS), llama_ladder, chosen, 1, {**options, "lowering": "aot_eager"})


def test_llama_without_staleness_is_the_standard_net() -> None:
    model = tiny_llama(2)
    compiled = torch.compile(
        model,
        backend="ladderize",
        fullgraph=True,
        options={"staleness": 0, "lowering": "eager"},
    )
    with torch.no_grad():
        expected = model(input_ids=tokens()).logits
        assert torch.equal(compiled(input_ids=tokens()).logits, expected)


@pytest.mark.parametrize(
    ("name", "staleness", "lowering"),
    some(
        product(["gpt2", "bert"], [1, 2], ["eager", "aot_eager"]),
        ("gpt2", 1, "aot_eager"),
        ("bert", 2, "eager"),
    ),
)
def test_other_families(name: str, staleness: int, lowering: str) -> None:
    make, ladder = MODELS[name]
    compare(make(), ladder, range(6), staleness, {"lowering": lowering, "expect_blocks": 6})


@pytest.mark.parametrize("name", some(zip(MODELS, strict=True), ("bert",)))
def test_part_of_a_model_by_layers(name: str) -> None:
    make, ladder = MODELS[name]
    compare(make(3), ladder, range(2, 6), 1, {"layers": "last:2"})


@pytest.mark.parametrize("name", some(zip(MODELS, strict=True), ("llama",)))
def test_one_compilation_for_all_shapes(name: str) -> None:
    make, ladder = MODELS[name]
    model = make(2)
    compiled = torch.compile(
        model, backend="ladderize", fullgraph=True, dynamic=True, options={"lowering": "eager"}
    )
    for batch, length in ((2, 7), (3, 5), (4, 9)):
        ids = tokens(batch, length)
        with (
            torch.no_grad(),
            torch.compiler.set_stance("fail_on_recompile" if batch > 2 else "default"),
        ):
            found, wanted = compiled(input_ids=ids).logits, ladder(model, ids, range(99), 1)
        assert_close(found, wanted, tolerance=TOLERANCE)


@pytest.mark.parametrize("implementation", some([("eager",), ("sdpa",)], ("eager",)))
def test_attention_implementations(implementation: str) -> None:
    model = tiny_llama(2, attn_implementation=implementation)
    compare(model, llama_ladder, range(4), 1, {"expect_blocks": 4})


def test_llama_in_training_mode() -> None:
    """No dropout in this model, so the two modes compute one function."""
    compare(tiny_llama(2).train(), llama_ladder, range(4), 1, {"lowering": "aot_eager"})


# -- Inductor: one compilation for the tests below


@pytest.fixture(scope="module")
def inductor_llama() -> tuple[nn.Module, tuple[Any, dict[str, Tensor]]]:
    """A Llama of 2 layers, and the logits and gradients of its compiled ladder."""
    torch._dynamo.reset()
    model = tiny_llama(2)
    compiled = torch.compile(model, backend="ladderize", fullgraph=True, options={"verify": "code"})
    ids = (tokens(),)
    return model, run_with_gradients(lambda ids: compiled(input_ids=ids).logits, model, ids)


def test_llama_through_inductor(inductor_llama: Any) -> None:
    model, (logits, _) = inductor_llama
    wanted = llama_ladder(model, tokens(), range(4), 1)
    assert_close(logits, wanted, tolerance=TOLERANCE)


def test_gradients_of_llama_through_inductor(inductor_llama: Any) -> None:
    model, (_, gradients) = inductor_llama
    _, wanted = run_with_gradients(
        lambda ids: llama_ladder(model, ids, range(4), 1), model, (tokens(),)
    )
    assert_close(gradients, wanted, tolerance=TOLERANCE, what="gradient")
