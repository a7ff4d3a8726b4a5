"""Single islands whose engines must compute what PyTorch does, in cases that easily go wrong."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stand_in_engine import Converted
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ladderize import LadderError
from ladderize.backends.tensorrt.engines import BuildReport, TensorRTOptions, build_islands
from ladderize.backends.tensorrt.engines.respell import spell_island
from ladderize.compat import new_fake_mode

aten = torch.ops.aten


@pytest.fixture
def check(monkeypatch) -> Callable[..., BuildReport]:
    """Build a function's engines and compare what they compute; returns the report."""

    def checked(
        function: Callable[..., tuple[Any, ...]], *inputs: Tensor, atol: float = 1e-5, **given: Any
    ) -> BuildReport:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            gm = make_fx(function)(*map(mode.from_tensor, inputs))
        converted = Converted()
        with converted.watched(monkeypatch):
            options = TensorRTOptions(target="8.6", **given)
            built = build_islands({"it": gm}, {"it": ()}, options)
        island = dataclasses.replace(built, make_engine=converted.make_engine).bind("it", {})
        ours, theirs = island(*inputs), function(*inputs)
        assert len(ours) == len(theirs)
        for found, expected in zip(ours, theirs, strict=True):
            assert found.stride() == expected.stride()
            torch.testing.assert_close(found, expected, atol=atol, rtol=50 * atol)
        return built.report

    torch.manual_seed(0)
    return checked


def heads(num: int, words: int = 6, width: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, num, words, width, dtype=dtype)


def flash(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor]:
    op = aten._scaled_dot_product_flash_attention_for_cpu
    return (op(query, key, value, 0.0, **options)[0] + 1,)


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention(check, is_causal):
    report = check(lambda q, k, v: flash(q, k, v, is_causal=is_causal), *(heads(4),) * 3)
    assert report.left == ()


def test_a_mask_that_is_not_causal(check):
    mask = torch.randn(2, 1, 6, 6)
    check(lambda q, k, v, m: flash(q, k, v, attn_mask=m), heads(4), heads(4), heads(4), mask)


def test_a_mask_of_truths(check):
    def attend(q, k, v, m):
        return flash(q, k, v, attn_mask=torch.where(m, 0.0, float("-inf")))

    mask = torch.rand(2, 1, 6, 6) > 0.3
    mask[..., 0] = True
    check(attend, heads(4), heads(4), heads(4), mask)


def test_more_keys_than_queries(check):
    check(lambda q, k, v: flash(q, k, v), heads(4, words=1), heads(4, words=9), heads(4, words=9))


@pytest.mark.parametrize("scale", [0.3, 8**-0.5])
def test_scales(check, scale):
    check(lambda q, k, v: flash(q, k, v, scale=scale), *(heads(4),) * 3)


def test_the_usual_scale_is_left_out():
    """The converter would round it to the query's dtype: 0.2 % off in bfloat16 for a head of 80."""
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(heads(2, width=80)) for _ in range(3)]
        gm = make_fx(lambda q, k, v: flash(q, k, v, scale=80**-0.5))(*fakes)
    spelled, _ = spell_island(gm, ())
    op = aten.scaled_dot_product_attention.default
    (whole,) = spelled.graph.find_nodes(op="call_function", target=op)
    assert whole.kwargs == {}


def test_an_output_that_is_given_twice(check):
    check(lambda x: ((y := x + 1), y, x.to(x.dtype) * 2, y), torch.randn(3, 4))


def test_an_output_that_is_another_in_one_engine(check):
    """A cast to the same dtype is its operand to Torch-TensorRT."""
    check(lambda x: ((y := x + 1), aten._to_copy(y, dtype=torch.float32), y * 2), torch.randn(3, 4))


def test_transposed_inputs_and_outputs(check):
    x = torch.randn(2, 3, 4, 5).permute(3, 0, 1, 2)
    assert check(lambda x: ((x * 2).permute(1, 2, 3, 0), x.sum(1)), x).left == ()


def test_pytorch_in_the_middle(check):
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 2
        return (y.double().cumsum(0).float() + y).t().contiguous() @ x, y

    report = check(function, torch.randn(4, 4))
    assert {op.op for op in report.left} >= {"aten.cumsum.default"}
    assert len(report.plans) == 2


def test_constants_of_the_graph(check):
    table = torch.randn(4, 4)
    report = check(lambda x: (x @ table + torch.ones(4), x * 3), torch.randn(4, 4))
    assert report.left == ()


def test_an_op_that_cannot_be_converted_can_be_left_to_pytorch(check):
    """Torch-TensorRT makes whole numbers of a range of fractions."""

    def function(x: Tensor) -> tuple[Tensor]:
        return (x * 2 + torch.arange(0.0, 1.0, 0.25),)

    with pytest.raises(LadderError, match=r"int32, not torch\.float32") as caught:
        check(function, torch.randn(4, 4))
    assert '{"in_pytorch": ["aten.arange.start_step"]}' in str(caught.value)
    report = check(function, torch.randn(4, 4), in_pytorch=["aten.arange.start_step"])
    assert [(op.op, op.why) for op in report.left] == [("aten.arange.start_step", "in_pytorch")]


def test_a_range_of_whole_floats(check):
    report = check(lambda x: (x @ torch.arange(2.0, 34.0, 2.0).view(4, 4),), torch.randn(4, 4))
    assert report.left == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_a_choice_between_tensors(check, dtype):
    """Its converter casts all but float16 and float32 to int32."""
    x, y = (torch.randn(4, 4).to(dtype) for _ in range(2))
    check(lambda x, y, z: (torch.where(z > 0, x, y),), x, y, torch.randn(4, 4))


def test_what_tensorrt_says_is_in_the_error(check):
    truths = torch.ones(4, dtype=torch.bool)
    with pytest.raises(LadderError, match=r"aten\.gt\.Tensor: .*GREATER requires inputs with"):
        check(lambda x, y: (x > y,), truths, ~truths)


def test_scatter_stays_whole(check):
    index = torch.randint(0, 4, (4, 4))
    report = check(lambda x, i: (torch.scatter_add(x, 0, i, x) * 2,), torch.randn(4, 4), index)
    assert sum(op.count for op in report.left) <= 1


def test_rms_norm_without_epsilon(check):
    x = 1e-4 * torch.randn(4, 8)
    check(lambda x: (torch.nn.functional.rms_norm(x, (8,)),), x)


def test_integers(check):
    x = torch.randint(-9, 9, (5, 5))
    y = torch.randint(1, 9, (5, 5))
    check(lambda x, y: (x + y, x // y, (x > y).sum(1), x.float() / y), x, y)


def test_a_converter_that_cannot_be_asked(check):
    """That of `sort` looks for a dim that need not be given."""
    report = check(lambda x: (aten.sort(x * 2)[0] + 1,), torch.randn(4, 4))
    (left,) = report.left
    assert left.op == "aten.sort.default"
    assert left.why == "its converter's validator fails: IndexError: tuple index out of range"


def test_sizes_are_read_off_tensors_or_are_inputs(monkeypatch):
    def function(x: Tensor, length: int, doubled: int) -> tuple[Tensor, Tensor]:
        return x.reshape(-1).view(length, -1) * 2, x.new_ones(doubled) + x.sum()

    real = torch.randn(6, 4), torch.randn(12)
    with new_fake_mode() as mode:
        x, other = map(mode.from_tensor, real)
        given = (x, x.shape[0], other.shape[0])
        gm = make_fx(function)(*given)
    for node, value in zip(gm.graph.find_nodes(op="placeholder"), given, strict=True):
        node.meta["val"] = value  # as after autograd
    converted = Converted()
    options = TensorRTOptions(target="8.6", sizes={"*": (2, 6, 16)})
    with converted.watched(monkeypatch):
        built = build_islands({"it": gm}, {"it": ()}, options)
    built = dataclasses.replace(built, make_engine=converted.make_engine)
    (plan,) = built.kinds["it"].plans.values()
    assert len(plan.inputs) == 2  # x, and the size that is none of it
    for length, doubled in [(6, 12), (9, 3)]:
        x = torch.randn(length, 4)
        found = built.bind("it", {})(x, length, doubled)
        for ours, theirs in zip(found, function(x, length, doubled), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_sizes_that_depend_on_values_stay_in_pytorch(monkeypatch):
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return (x * 2).nonzero() * 3, x + 1

    real = torch.tensor([0.0, 1.0, 0.0, 2.0])
    with new_fake_mode() as mode:
        gm = make_fx(function)(mode.from_tensor(real))
    converted = Converted()
    options = TensorRTOptions(target="8.6", sizes={"*": (2, 4, 8)})
    with converted.watched(monkeypatch):
        built = build_islands({"it": gm}, {"it": ()}, options)
    built = dataclasses.replace(built, make_engine=converted.make_engine)
    reasons = {op.op: op.why for op in built.report.left}
    assert reasons["aten.mul.Tensor"] == "a size depends on values"
    found = built.bind("it", {})(real)
    assert all(map(torch.equal, found, function(real)))
