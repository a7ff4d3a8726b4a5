"""Every family that divides, with symbolic batch and length: traced once, run at two shapes.

That includes all of the zoo that have a tensor-parallel plan in a library: `base_model_tp_plan` in
a configuration of transformers (llama to qwen3-next, llava), a model of Megatron-LM's (GPT, BERT,
T5, Mamba, ViT) or in vLLM's `model_executor/models` (bart, bloom, clip, falcon, gpt_j, mpt, opt,
whisper and so on). The programs are those of torch.export's default, without Dynamo; those of
`test_exported` come from Dynamo.
"""

from typing import Any

import pytest
import torch
from helpers.lockstep import ShardedProgram
from torch import Tensor
from torch.export import Dim, ExportedProgram, export

from ladderize.testing import assert_close
from zoo.family import Family
from zoo.sharded import TOLERANCE, UNEXPORTED, expect, expected_row, run
from zoo.table import FAMILIES

BATCH, LENGTH = 0, 1
# Inputs of a length of their own, behind the batch; images, sounds and the like have none.
HAVE_LENGTH = {
    "input_ids",
    "decoder_input_ids",
    "encoder_hidden_states",
    "src",
    *("states", "actions", "returns_to_go", "timesteps", "attention_mask"),
    "inputs",
}
# Where torch itself makes a size that was to be symbolic a constant: dim, and why.
LOOP = "a Python loop over positions"
CONSTANT = {
    "mamba": (LENGTH, LOOP),
    "mamba (associative scan)": (LENGTH, LOOP),
    "rwkv (a scan that fills a buffer)": (LENGTH, LOOP),
    "recurrentgemma": (LENGTH, LOOP),
    "out[:, i] = f(x)[:, i]": (LENGTH, LOOP),
    "xlstm": (LENGTH, "compares the shape after all chunks with the one before"),
    "canine (three encoders)": (LENGTH, "a Python loop over windows"),
    "llava": (BATCH, "as many image tokens as image features, compared while tracing"),
}
ROWS = [
    family
    for family in FAMILIES
    if family.name not in UNEXPORTED and expected_row(family).reductions
]


def symbolic_dims(name: str, value: Tensor) -> list[int]:
    has_length = name in HAVE_LENGTH or (name == "x" and value.dim() == 3)
    return [BATCH, LENGTH] if has_length else [BATCH]


def trace(family: Family, model: torch.nn.Module, constant: int | None) -> ExportedProgram:
    """`Dim.DYNAMIC`: an error where torch would make the size a constant."""
    inputs = family.feed()
    shapes = {
        name: {dim: Dim.DYNAMIC for dim in symbolic_dims(name, value) if dim != constant}
        for name, value in inputs.items()
    }
    with torch.no_grad():
        return export(model, (), inputs, strict=False, dynamic_shapes=shapes)


def resized(inputs: dict[str, Any], more: dict[int, int]) -> dict[str, Any]:
    """`more[dim]` entries more of each input, from its start again."""
    found = dict(inputs)
    for name, value in inputs.items():
        for dim in symbolic_dims(name, value):
            entries = torch.arange(value.shape[dim] + more.get(dim, 0)) % value.shape[dim]
            found[name] = found[name].index_select(dim, entries)
    return found


@pytest.fixture(autouse=True)
def _no_fused_layers():
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.fixture(autouse=True)
def _no_cache_of_fake_results():
    """Of symbolic sizes an entry costs more to make than it saves: a third of this file's time."""
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield


@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in ROWS])
@pytest.mark.filterwarnings("ignore:Not all is divided")
def test_two_ranks_equal_the_eager_ladder(family: Family) -> None:
    model, row = family.build(), expected_row(family)
    constant, _ = CONSTANT.get(family.name, (None, ""))
    sharded = ShardedProgram(trace(family, model, constant), 2)
    found = (sharded.plan.num_reductions, len(sharded.plan.whole_branches))
    assert found == (row.reductions, row.whole)
    others = {BATCH: 1, LENGTH: -2}
    for more in ({}, {dim: by for dim, by in others.items() if dim != constant}):
        inputs = resized(family.feed(), more)
        with torch.no_grad():
            expected = expect(family, model, **inputs)
            for outputs in run(sharded, **inputs):
                assert_close(outputs, expected, tolerance=TOLERANCE)


@pytest.mark.parametrize("name", CONSTANT)
def test_what_torch_makes_a_constant(name: str) -> None:
    """A row that torch no longer needs is to be taken out of the table."""
    (family,) = (family for family in ROWS if family.name == name)
    with pytest.raises(torch._dynamo.exc.UserError, match="specialized it to be a constant"):
        trace(family, family.build(), constant=None)
