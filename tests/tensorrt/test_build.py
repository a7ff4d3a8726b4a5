"""Engines built by TensorRT-RTX for a GPU of another machine."""

import re
from collections.abc import Callable

import pytest
import torch
from laddered import MODELS, Cut, laddered
from test_values import inputs_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import ladderize
from ladderize.backends.tensorrt.engines import Built, TensorRTOptions, assemble, build_islands
from ladderize.compat import tensorrt as compat

aten = torch.ops.aten


@pytest.fixture(scope="module")
def llama() -> Cut:
    torch.manual_seed(0)
    return laddered(MODELS["llama"](), **inputs_of("llama"))


def built(cut: Cut, **options) -> Built:
    return build_islands(cut.islands, cut.weights, TensorRTOptions(target="8.6", **options))


def one(
    function: Callable[..., torch.Tensor], *tensors: torch.Tensor, num_weights: int = 0, **options
) -> Built:
    """One island of a function; its last arguments are weights."""
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor) for tensor in tensors]
    with mode:
        gm = make_fx(lambda *args: (function(*args),))(*fakes)
    names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    own = names[len(names) - num_weights :]
    given = {"target": "8.6"} | options
    return build_islands({"it": gm}, {"it": own}, TensorRTOptions(**given))


def test_equal_islands_share_a_plan(llama):
    report = built(llama).report
    assert report.num_islands == 12
    shared = [plan for plan in report.plans if len(plan.islands) > 1]
    assert [plan.islands for plan in shared] == [
        ("island_3", "island_5", "island_7"),  # attention of layers 1 to 3
        ("island_4", "island_6", "island_8"),  # their MLPs
    ]
    attention, mlp = (plan.layer_types for plan in shared)
    assert attention["ATTENTION_INPUT"] == attention["ATTENTION_OUTPUT"] == 1
    assert attention["MATRIX_MULTIPLY"] == 4  # q, k, v, o
    assert mlp["MATRIX_MULTIPLY"] == 3
    assert "ATTENTION_INPUT" not in mlp
    left = {op.op: (op.count, op.why) for op in report.left}
    assert left == {"aten.cumsum.default": (1, "Torch-TensorRT does not convert it")}
    assert re.search(r"masking_utils\.py:\d+$", report.left[0].source)
    assert "9 TensorRT plans for 8.6: 9 built, 0 found" in next(report.describe())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_precision_is_the_graphs(dtype):
    kind = {"float16": "HALF", "bfloat16": "BF16"}[dtype]
    model = MODELS["bert"]().to(getattr(torch, dtype))
    report = built(laddered(model, **inputs_of("bert"))).report
    layers = [layer for plan in report.plans for layer in plan.layers]
    heavy = ("MATRIX_MULTIPLY", "ATTENTION_OUTPUT")
    assert {layer.dtypes for layer in layers if layer.type in heavy} == {(kind,)}
    assert sum(layer.type == "ATTENTION_OUTPUT" for layer in layers) == 2  # layer 0, layers 1 and 2
    assert report.left == ()


def test_a_plan_is_built_for_a_range_of_sizes(monkeypatch):
    seen = []
    convert = compat.convert
    monkeypatch.setattr(
        ladderize.backends.tensorrt.engines.build.trt,
        "convert",
        lambda *a: seen.append(convert(*a)) or seen[-1],
    )
    built(laddered(MODELS["bert"](), dynamic=True, **inputs_of("bert")))
    profiles = []
    for network in seen:
        net, (profile,) = network.definition, network.interpreter.optimization_profiles
        for index in range(net.num_inputs):
            tensor = net.get_input(index)
            if -1 in tuple(tensor.shape):
                profiles.append((tuple(tensor.shape), *map(tuple, profile.get_shape(tensor.name))))
    # Dynamo takes a size of one for special, and traces anew for it.
    assert ((-1, -1, 64), (2, 2, 64), (2, 16, 64), (8, 64, 64)) in profiles


def test_plans_are_found_again(llama, tmp_path):
    first = built(llama, cache=tmp_path).report
    files = sorted(tmp_path.iterdir())
    assert (first.num_built, first.num_found, len(files)) == (9, 0, 9)
    again = built(llama, cache=tmp_path).report
    assert (again.num_built, again.num_found) == (0, 9)
    assert [plan.layers for plan in again.plans] == [plan.layers for plan in first.plans]
    files[0].write_bytes(files[0].read_bytes()[:-1])
    third = built(llama, cache=tmp_path).report
    assert (third.num_built, third.num_found, third.unusable) == (1, 8, (str(files[0]),))
    assert built(llama, cache=tmp_path).report.num_found == 9
    assert sorted(tmp_path.iterdir()) == files  # nothing else is left behind


@pytest.mark.parametrize("options", [{"target": "8.9"}, {"optimization_level": 1}])
def test_other_options_are_other_plans(tmp_path, options):
    x, w = torch.empty(4, 8), torch.empty(8, 8)
    one(torch.mm, x, w, num_weights=1, cache=tmp_path)
    assert one(torch.mm, x, w, num_weights=1, cache=tmp_path).report.num_found == 1
    assert one(torch.mm, x, w, num_weights=1, cache=tmp_path, **options).report.num_found == 0


def test_float64_runs_in_pytorch():
    found = one(lambda x: (x.double() * 2).float() + 1, torch.empty(4))
    assert {op.why for op in found.report.left} == {"TensorRT does not support float64"}
    (plan,) = found.report.plans
    assert all("FLOAT" in layer.dtypes for layer in plan.layers)


def test_dropout_runs_in_pytorch():
    def attend(q, k, v):
        found = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.5)
        return found[0] + 1

    found = one(attend, *(torch.empty(1, 2, 4, 8) for _ in range(3)))
    reasons = {op.op: op.why for op in found.report.left}
    name = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    assert reasons == {name: "converters ignore dropout"}


def test_require_full_names_what_is_left():
    with pytest.raises(ladderize.LadderError, match=r"Not all of it(.|\n)*cumsum.*not convert"):
        one(lambda x: x.cumsum(0) + 1, torch.empty(4), require_full=True)


def test_small_parts_can_stay_in_pytorch():
    found = one(lambda x: (x + 1).cumsum(0) * 2 + 3, torch.empty(4), smallest_engine=2)
    assert [plan.layer_types["ELEMENTWISE"] for plan in found.report.plans] == [2]
    reasons = {op.op: op.why for op in found.report.left}
    assert reasons["aten.add.Tensor"] == "fewer ops than smallest_engine"


def test_what_cannot_be_converted_is_named(monkeypatch):
    from torch_tensorrt.dynamo.conversion import impl

    def stumble(*_args, **_kwargs):
        raise AttributeError("'NoneType' object has no attribute 'name'\nand more")

    monkeypatch.setattr(impl.unary, "cos", stumble)
    with pytest.raises(ladderize.LadderError) as caught:
        one(lambda x: x.cos() + 1, torch.empty(4))
    said = "aten.cos.default: AttributeError: 'NoneType' object has no attribute 'name' ("
    assert "could not convert it" in str(caught.value)
    assert said in str(caught.value)


def test_what_cannot_be_built_is_told_in_tensorrts_words():
    tensors = [torch.empty(4, 4, dtype=torch.bfloat16) for _ in range(2)]
    with pytest.raises(ladderize.LadderError, match="could not build an engine of it") as caught:
        one(torch.mm, *tensors, target="7.5")
    assert "HW-specific datatypes: b16" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": None}, "there is no GPU, and target= is not given"),
        ({"target": "9.0"}, "builds for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1, not for 9.0"),
        ({"weights": "stripped"}, "weights='stripped' needs a GPU to build on"),
    ],
)
def test_targets(options, said):
    with pytest.raises(ladderize.LadderError, match=re.escape(said)):
        one(torch.mm, torch.empty(4, 4), torch.empty(4, 4), **options)


def test_refittable_engines_need_a_gpu(monkeypatch):
    """The reason why weights are inputs by default. If this fails, TensorRT no longer needs it."""
    monkeypatch.setattr(assemble, "choose_target", lambda _: (8, 6))
    tensors = torch.empty(4, 4), torch.empty(4, 4)
    with pytest.raises(ladderize.LadderError, match="CUDA_SUCCESS"):
        one(torch.mm, *tensors, num_weights=1, target=None, weights="refittable")


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_pytorchs(monkeypatch, allowed):
    trt = compat.tensorrt()
    told = []
    build_plan = compat.build_plan

    def watch(network, *rest):
        config = network.interpreter._populate_trt_builder_config()
        told.append(config.get_flag(trt.BuilderFlag.TF32))
        return build_plan(network, *rest)

    monkeypatch.setattr(ladderize.backends.tensorrt.engines.build.trt, "build_plan", watch)
    usual = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        one(torch.mm, torch.empty(4, 4), torch.empty(4, 4))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = usual
    assert told == [allowed]
