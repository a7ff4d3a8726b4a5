"""Linears that unpack their weights at every call: how they are sharded, and what prevents it."""

from functools import cache, partial

import pytest
import torch
from helpers.graphs import Residual
from helpers.language_models import SIZES, language_model
from helpers.lockstep import ShardedProgram
from helpers.packed_linears import (
    AwqLinear,
    BytesLinear,
    GptqLinear,
    NibblesLinear,
    PlanesLinear,
    SpreadLinear,
    packed,
)
from torch import nn
from torch.export import export
from transformers import Phi3Config, Phi3ForCausalLM
from transformers.integrations.bitnet import BitLinear

from ladderize import LadderWarning
from ladderize.sharding.placement import Replicate, local_shape, take_local

FORMS = [
    partial(GptqLinear, group=8),
    partial(GptqLinear, group=8, is_shuffled=True),
    partial(AwqLinear, group=8),
    partial(NibblesLinear, group=8),
    BytesLinear,
    partial(BytesLinear, block=8),
]
PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def x():
    return torch.randn(3, 32, generator=torch.Generator().manual_seed(1))


def plain(linear):
    return linear


def residual(*forms, of=Residual):
    """A layer of each form, its MLP 32 -> 64 -> 32."""
    torch.manual_seed(0)
    model = of(len(forms), 32).eval()
    for layer, form in zip(model.layers, forms, strict=True):
        packed(layer, form, "up", "down")
    return model


def exported(model):
    return export(model, (x(),), strict=False)


@cache
def all_forms():
    model = residual(*FORMS)
    return model, exported(model)


def largest_error(program, expected):
    found = [output for output, *_ in program(x())]
    return max(float((output - expected).detach().abs().max()) for output in found)


def share(program, prefix):
    """What a rank holds of the bytes under `prefix`."""
    tensors = {**program.program.state_dict, **program.program.constants}
    placements, ranks = program.plan.placements, program.num_ranks
    whole = {name: t for name, t in tensors.items() if name.startswith(prefix)}
    local = sum(
        torch.Size(local_shape(t.shape, placements.get(name, Replicate()), ranks)).numel()
        * t.element_size()
        for name, t in whole.items()
    )
    return local / sum(t.nbytes for t in whole.values())


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_compute_what_one_process_does(ranks):
    model, exported_program = all_forms()
    program = ShardedProgram(exported_program, ranks)
    assert largest_error(program, model.ladder(x())) <= 1e-5
    assert program.plan.num_reductions == len(FORMS)
    assert not program.plan.whole
    least, most = 1 / ranks, (1 / ranks + 0.25, 1 / ranks + 0.1)
    for layer in range(len(FORMS)):  # norms and one bias are whole, and of GPTQ scales of rows
        assert least <= share(program, f"layers.{layer}.") <= most[layer > 1]


def placed(program, prefix):
    found = program.plan.placements.items()
    return {n.removeprefix(prefix): str(p) for n, p in found if n.startswith(prefix)}


@pytest.mark.parametrize(
    ("layer", "columns", "rows"),
    [
        (0, {"qweight": "1 as 64", "qzeros": "1 as 8", "scales": "1 as 64"}, {"g_idx": "0 as 64"}),
        (1, {"qweight": "1 as 64", "qzeros": "1 as 8", "scales": "1 as 64"}, {"g_idx": "0 as 64"}),
        (
            2,
            {"qweight": "1 as 8", "qzeros": "1 as 8", "scales": "1 as 64"},
            {"qweight": "0 as 64", "qzeros": "0 as 8", "scales": "0 as 8"},
        ),
        (
            3,
            {"packed": "0 as 64", "scales": "0 as 64", "zeros": "0 as 64"},
            {"packed": "1 as 32", "scales": "1 as 8", "zeros": "1 as 8"},
        ),
        (4, {"weight": "0 as 64", "scales": "0 as 64"}, {"weight": "1 as 64"}),
        (5, {"weight": "0 as 64", "scales": "0 as 8"}, {"weight": "1 as 64", "scales": "1 as 8"}),
    ],
)
def test_what_is_cut(layer, columns, rows):
    """By inputs, scales are whole that are looked up by g_idx; so are those of rows."""
    program = ShardedProgram(all_forms()[1], 2)
    if layer < 2:
        rows = rows | {"qweight": "0 as 8"}
    for name, cut in (("up", columns | {"bias": "0 as 64"}), ("down", rows)):
        wanted = {parameter: f"sharded on dim {dim}" for parameter, dim in cut.items()}
        assert placed(program, f"layers.{layer}.{name}.") == wanted


def test_groups_that_ranks_share_stay_whole():
    """One group for 64 inputs: each rank takes its part of the repeated scales."""
    model = residual(partial(AwqLinear, group=32), partial(NibblesLinear, group=8))
    packed(model.layers[0], partial(AwqLinear, group=64), "down")
    program = ShardedProgram(exported(model), 4)
    assert largest_error(program, model.ladder(x())) <= 1e-5


def test_gradients_of_scales():
    model = residual(partial(NibblesLinear, group=8), BytesLinear, partial(GptqLinear, group=8))
    for layer in model.layers[1:]:
        layer.down.scales = nn.Parameter(layer.down.scales)
    program = ShardedProgram(exported(model), 2)
    model.ladder(x()).square().sum().backward()
    sum(found.square().sum() for (found,) in program(x())).backward()
    for name in ("0.down.scales", "0.up.scales", "1.down.scales", "2.down.scales"):
        name = f"layers.{name}"
        wanted = model.get_parameter(name).grad
        placement = program.plan.placements.get(name, Replicate())
        for rank, local in enumerate(program.local):
            part = take_local(wanted, placement, rank, 2)
            torch.testing.assert_close(local[name].grad, part, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", [GptqLinear, AwqLinear])
def test_fused_projections_and_shared_heads(form):
    """Of [q|k|v] over 4 ranks q is cut, and the two key heads are whole; [gate|up] is cut twice."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = Phi3ForCausalLM(Phi3Config(**SIZES | sizes)).eval().requires_grad_(False)
    packed(model, partial(form, group=8), *PROJECTIONS)
    ids = torch.arange(12).reshape(2, 6)
    program = export(model, (ids,), strict=False)
    expected = ShardedProgram(program, 2)(ids)[0][0]
    with pytest.warns(LadderWarning, match=r"qkv_proj.qweight \[64:96\]: 2 heads"):
        over_four = ShardedProgram(program, 4)
    for found, *_ in over_four(ids):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    fused = placed(over_four, "model.layers.0.mlp.gate_up_proj.")["qweight"]
    assert fused.endswith("as 128+128" if form is GptqLinear else "as 16+16")
    assert over_four.plan.num_reductions == 2


# ---- what is in the way


class Flipped(NibblesLinear):
    @property
    def exact(self):
        return super().exact.flip(0)


class AcrossWords(AwqLinear):
    """Its order moves values from one word to another."""

    @staticmethod
    def _unpacked(words):
        values = AwqLinear._unpacked(words)
        places = torch.arange(values.shape[-1]).view(8, -1)[[*range(7, -1, -1)]].view(-1)
        return values[:, places]


class CountsOn(AwqLinear):
    """Looks up by positions that are moved in words first, and then by others made of them."""

    @staticmethod
    def _unpacked(words):
        values = AwqLinear._unpacked(words)
        places = torch.arange(values.shape[-1]).view(-1, 8).view(-1)
        return values[:, places] + 0 * values[:, (places + 8) % values.shape[-1]]


class AnswersWords(Residual):
    def forward(self, x):
        return super().forward(x), self.layers[1].down.qweight.sum()


@pytest.mark.parametrize(
    ("form", "ranks", "said"),
    [
        (partial(Flipped, group=8), 2, "no sharding rule for aten.flip.default in layers.1.down"),
        (partial(AcrossWords, group=8), 2, "looks up entries of the sharded dim"),
        (partial(NibblesLinear, group=32), 4, "2 groups of size 32 cannot be divided over 4 ranks"),
        (partial(GptqLinear, group=8), 16, "8 words cannot be divided over 16 ranks"),
        (partial(NibblesLinear, group=8), 64, "32 words cannot be divided over 64 ranks"),
    ],
)
def test_what_cannot_be_cut_is_named(form, ranks, said):
    model = residual(plain, form)
    with pytest.warns(LadderWarning, match=said):
        program = ShardedProgram(exported(model), ranks)
    assert largest_error(program, model.ladder(x())) <= 1e-5
    assert share(program, "layers.1.") == 1
    (whole,) = program.plan.whole
    held = sum(t.nbytes for t in model.layers[1].state_dict().values() if t.dim() > 1)
    assert whole.num_bytes == held - held // ranks


def test_memory_that_is_filled_with_values_is_named():
    def bit_linear(linear):
        made = BitLinear(linear.in_features, linear.out_features, bias=False, dtype=torch.float32)
        made.weight.fill_(0b01_10_00_01)
        return made

    model = residual(plain, bit_linear).requires_grad_(False)
    said = r"layers.1.up multiplies by aten.sub of memory that the graph fills"
    with pytest.warns(LadderWarning, match=said):
        program = ShardedProgram(exported(model), 2)
    assert largest_error(program, model.ladder(x())) <= 1e-4


def test_three_bits_in_planes_are_cut_between_blocks_of_words():
    model = residual(plain, partial(PlanesLinear, group=8))
    program = ShardedProgram(exported(model), 2)
    assert not program.plan.whole
    assert largest_error(program, model.ladder(x())) <= 1e-5
    found = placed(program, "layers.1.")
    assert "sharded on dim 1 as 6" in found["up.qzeros"]
    assert "sharded on dim 0 as 6" in found["down.qweight"]
    with pytest.warns(
        LadderWarning, match="layers.1.down.qweight: 6 words cannot be divided over 4"
    ):
        program = ShardedProgram(exported(model), 4)
    assert largest_error(program, model.ladder(x())) <= 1e-5


def test_writes_into_an_unpacked_weight_are_named():
    model = residual(plain, partial(SpreadLinear, group=8))
    said = r"layers.1.up.scales, into which aten.copy_.default in layers.1.up writes in place"
    with pytest.warns(LadderWarning, match=said):
        program = ShardedProgram(exported(model), 2)
    assert largest_error(program, model.ladder(x())) <= 1e-5


def test_positions_that_are_counted_on_are_absolute():
    model = residual(plain, partial(CountsOn, group=8))
    with pytest.warns(LadderWarning, match="looks up entries of the sharded dim"):
        program = ShardedProgram(exported(model), 2)
    assert largest_error(program, model.ladder(x())) <= 1e-5


def test_one_key_head_names_attention():
    """Words and zero points are not divided within a word."""
    model = language_model("llama", num_key_value_heads=1).requires_grad_(False)
    packed(model, partial(GptqLinear, group=8), "k_proj", "v_proj")
    program = export(model, (torch.arange(12).reshape(2, 6),), strict=False)
    with pytest.warns(LadderWarning, match="k_proj.qweight.*scaled_dot_product_attention"):
        ShardedProgram(program, 2)


def test_words_that_are_read_elsewhere_stay_whole():
    model = residual(plain, partial(GptqLinear, group=8), of=AnswersWords)
    with pytest.warns(LadderWarning, match="layers.1.down.qweight is also used outside the branch"):
        program = ShardedProgram(exported(model), 2)
    assert largest_error(program, model.ladder(x())) <= 1e-5
    assert all(int(words) == model(x())[1] for _, words in program(x()))
