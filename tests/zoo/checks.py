"""The checks of each family, on its single traced program."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.lockstep import ShardedProgram

from ladderize import LadderConfig, LadderError, LadderWarning, rewrite
from ladderize.frontends.rewrite import ladder_program
from ladderize.sharding.placement import Replicate, take_local
from ladderize.testing import TOLERANCE, assert_close, eager_ladder, run_with_gradients
from zoo.family import Family
from zoo.programs import UNEXPORTED, Traced, expect, is_symbolic, tensors, traced
from zoo.sharded import SHARDED_TOLERANCE, check_over, expected_row, run

Check = Callable[[Family], None]

# Family -> over how many ranks its gradients are compared; over 4, keys have fewer heads than that.
TRAINED = {
    "llama": 4,
    "mixtral": 4,
    "gpt-oss": 4,
    "llama4": 4,
    "phi3 (fused projections)": 4,
    "falcon (parallel)": 4,
    "olmo2 (normed branches)": 2,
    "gpt2": 2,
    "bloom": 2,
    "albert (shared weights)": 2,
    "t5": 2,
    "swin": 2,
    "resnet (basic layers)": 2,
    "nn.TransformerEncoder (pre-norm)": 2,
}
# The programs decomposed in every run; the other deep rows under --deep.
DECOMPOSED = {"opt", "torchvision's resnet"}
# Ladders in part of these are extended: shared values, skips of their own.
EXTENDED = {"glm-moe-dsa (shared indexer)", "x + a(u) + (u + l(u))"}
# Not decomposed: torch 2.13's run_decompositions() fails on a view of strided attention results.
UNDECOMPOSED = {"gpt2"}
# Once rewritten their stale blocks are not seen, and the rest is refused; it is not laddered twice.
UNSEEN = {"bit (pre-activation)", "out[:, i] = f(x)[:, i]"}

# Row -> a row of every run whose branches and sums are spelled the same way. Their eager ladders
# are counted in every run; they are traced under --deep.
AKIN = {
    **dict.fromkeys(["mistral", "qwen2", "nemotron", "starcoder2", "persimmon"], "llama"),
    **dict.fromkeys(["gemma3", "glm4"], "gemma2 (sandwich norms)"),
    "exaone4": "olmo2 (normed branches)",
    "qwen3-moe": "mixtral",
    "glm-moe-dsa (shared indexer)": "deepseek-v3",
    **dict.fromkeys(["phi", "cohere", "stablelm (parallel)"], "gpt-neox (parallel)"),
    "codegen": "gpt-j",
    **dict.fromkeys(["falcon (sequential)", "gpt-neox (sequential)"], "bloom"),
    **dict.fromkeys(["gpt-neo", "gpt-bigcode"], "gpt2"),
    "granite-moe-hybrid": "bamba",
    **dict.fromkeys(["roberta", "electra", "esm", "mpnet", "big-bird (full attention)"], "bert"),
    "mobilebert": "mobilebert (bottlenecks)",
    "mbart": "whisper",
    "wav2vec2 (pre-norm)": "wav2vec2",
    "resnet (bottlenecks)": "torchvision's resnet",
    **dict.fromkeys(["yolos", "videomae", "ast (spectrograms)"], "vit"),
    "dinov3": "dinov2 (gated, registers)",
}

# Traced under --deep too, for it takes 3 to 7 s: loops over positions or windows, large imports,
# and mixtures of what other rows have one by one.
LONG = {
    "qwen3-next (linear attention)",
    "xlstm",
    "jetmoe",
    "prophetnet",
    "llava",
    "recurrentgemma",
    "mamba (associative scan)",
    "minimax (skip of the normed)",
    "cvt",
    "focalnet",
    "rwkv (a scan that fills a buffer)",
    "canine (three encoders)",
}


def has_an_eager_ladder(family: Family) -> None:
    """It has as many blocks as the row says, and is far from the standard model."""
    model, inputs = family.build(), family.feed()
    with torch.no_grad():
        standard = model(**inputs)
        with eager_ladder(model, family.reads, staleness=0) as ladder:
            assert_close(model(**inputs), standard, tolerance=0.0)
        assert len(ladder.blocks) == family.blocks
        with eager_ladder(model, family.reads):
            stale = model(**inputs)
    with pytest.raises(AssertionError, match="is off by"):
        assert_close(stale, standard, tolerance=1000 * TOLERANCE[family.dtype])


def is_rewritten(family: Family) -> None:
    """The right blocks are found, and values and gradients are the eager ladder's."""
    _equals_rewritten(traced(family))


def _equals_rewritten(row: Traced) -> None:
    ladder = row.ladder.module()
    for inputs, expected in zip(row.inputs, row.expected, strict=True):
        with torch.no_grad():
            assert_close(tensors(ladder(**inputs)), expected)
    if row.family.trains:
        given = row.family.feed()
        found = run_with_gradients(ladder, ladder, (), given)
        wanted = run_with_gradients(lambda **kwargs: expect(row, kwargs), row.model, (), given)
        missing = wanted[1].keys() - found[1].keys()
        assert not missing, missing
        assert_close({name: found[1][name] for name in wanted[1]}, wanted[1], what="gradient")


def is_rewritten_in_part(family: Family) -> None:
    """Half of the blocks, two blocks stale."""
    row, half = traced(family), range(family.blocks // 2, family.blocks)
    ladder = rewrite(row.program, blocks="last:50%", staleness=2).module()
    with torch.no_grad():
        expected = expect(row, family.feed(), chosen=half, staleness=2)
        assert_close(tensors(ladder(**family.feed())), expected)


def is_extended(family: Family) -> None:
    """A ladder of some blocks, one of them between fresh ones, and then of all."""
    row = traced(family)
    in_part = rewrite(row.program, blocks=[1, 2, *range(4, family.blocks)])
    ladder = rewrite(in_part, blocks="all").module()
    with torch.no_grad():
        assert_close(tensors(ladder(**family.feed())), row.expected[0])


def is_rewritten_decomposed(family: Family) -> None:
    row = traced(family)
    with torch.no_grad():
        program = row.program.run_decompositions()
        ladder = rewrite(program, expect_blocks=family.found).module()
        assert_close(tensors(ladder(**family.feed())), row.expected[0])


def is_a_ladder_afterwards(family: Family) -> None:
    """A second rewrite changes nothing."""
    ladder = traced(family).ladder
    if family.name in UNSEEN:
        with pytest.raises(LadderError, match="Need at least two consecutive blocks"):
            ladder_program(ladder, LadderConfig())
        return
    with pytest.warns(LadderWarning, match="is a ladder already"):
        again, _ = ladder_program(ladder, LadderConfig())
    assert not any(again.chosen)


def is_sharded_over_two_ranks(family: Family) -> None:
    check_over(traced(family), 2)


def has_its_part_of_the_gradients(family: Family) -> None:
    """Each rank's gradient of its part of a parameter is that part of the eager gradient."""
    num_ranks, row = TRAINED[family.name], traced(family)
    sharded = ShardedProgram(row.program, num_ranks)
    sum(_loss(found) for found in run(sharded, **family.feed())).backward()
    _loss(expect(row, family.feed())).backward()
    # Of tied names the program keeps any one.
    full = {n: p.grad for n, p in row.model.named_parameters(remove_duplicate=False)}
    row.model.zero_grad()
    compared = 0
    for rank, local in enumerate(sharded.local):
        for parameter, leaf in local.items():
            if leaf.grad is None:
                continue
            placement = sharded.plan.placements.get(parameter, Replicate())
            wanted = take_local(full[parameter], placement, rank, num_ranks)
            what = f"{parameter} on {rank}"
            assert_close(leaf.grad, wanted, tolerance=SHARDED_TOLERANCE, what=what)
            compared += 1
    assert compared >= 10 * num_ranks


def _loss(outputs: list[torch.Tensor]) -> torch.Tensor:
    return sum(out.sin().mean() for out in outputs if out.requires_grad)


def serves_any_size(family: Family) -> None:
    """Of a family that every run traces at one size."""
    row = traced(family, symbolic=True)
    _equals_rewritten(row)
    check_over(row, 2)


def cases(families: list[Family]) -> list[Any]:
    """The families with what is asked of them; those of one family follow one another."""
    assert AKIN.keys().isdisjoint([*AKIN.values(), *TRAINED, *DECOMPOSED])
    return [
        pytest.param(family, check, id=f"{family.name}-{name}", marks=marks)
        for family in families
        for name, check, marks in _checks(family)
    ]


def _checks(family: Family) -> Iterator[tuple[str, Check, Any]]:
    deep = [pytest.mark.deep]
    yield "eager", has_an_eager_ladder, []
    if family.name in UNEXPORTED:
        return
    unless_akin = deep if family.name in AKIN.keys() | LONG else []
    unless_many = [] if family.is_deep or family.name in UNSEEN else deep
    yield "rewritten", is_rewritten, unless_akin
    yield "two ranks", is_sharded_over_two_ranks, unless_akin
    if family.name in TRAINED:
        yield "gradients over ranks", has_its_part_of_the_gradients, []
    yield "rewritten twice", is_a_ladder_afterwards, unless_many
    if family.name in EXTENDED:
        yield "extended", is_extended, unless_akin
    if family.is_deep:
        yield "half, two blocks stale", is_rewritten_in_part, []
        if family.name not in UNDECOMPOSED:
            marks = [] if family.name in DECOMPOSED else deep
            yield "decomposed", is_rewritten_decomposed, marks
    if not is_symbolic(family) and expected_row(family).reductions:
        yield "any size", serves_any_size, deep
