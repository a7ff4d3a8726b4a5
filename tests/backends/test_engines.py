"""The code around TensorRT, without TensorRT: options, sizes, kinds, plan files, binding.

Engines are built in tests/tensorrt, which has its own environment.
"""

import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers.graphs import capture
from torch import nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ladderize import LadderError
from ladderize.backends.tensorrt.engines import TensorRTOptions, run_plans
from ladderize.backends.tensorrt.engines.assemble import Built
from ladderize.backends.tensorrt.engines.build import BuiltKind
from ladderize.backends.tensorrt.engines.plan_cache import (
    CachedPlan,
    EngineLayer,
    PlanCache,
    decode_plan,
    encode_plan,
)
from ladderize.backends.tensorrt.engines.plan_keys import canonical_text, plan_key
from ladderize.backends.tensorrt.engines.size_ranges import (
    Extent,
    Extents,
    find_extents,
    short_name,
)
from ladderize.backends.tensorrt.engines.strides import make_contiguous, memory_order
from ladderize.compat import new_fake_mode

PLAN = CachedPlan(
    b"engine", ("in0", "in1"), ("output0",), (), (EngineLayer("SHUFFLE", "s", ("HALF",)),), 0.5
)


# ---- options


def test_options_are_parsed():
    options = TensorRTOptions.parse({"target": "8.9", "sizes": {"*": (1, 2, 3)}})
    assert options.compute_capability == (8, 9)
    assert options.weights == "inputs"


def test_every_unknown_option_is_named_with_the_nearest():
    with pytest.raises(LadderError) as caught:
        TensorRTOptions.parse({"size": {}, "levels": 3})
    assert "'size'; did you mean 'sizes'?" in str(caught.value)
    assert "'levels'" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "refitable"}, "did you mean 'refittable'?"),
        ({"target": "sm_89"}, "target='sm_89' is not a compute capability"),
        ({"target": 8.9}, "target=8.9 is not a compute capability"),
        ({"optimization_level": 6}, "at least 0 and at most 5"),
        ({"workspace": 0}, "workspace=0 is not a whole number of at least 1"),
        ({"smallest_engine": True}, "smallest_engine=True is not a whole number"),
        ({"require_full": 1}, "require_full=1 is neither True nor False"),
        ({"in_pytorch": "aten.mm.default"}, "in_pytorch='aten.mm.default' is not a list"),
        ({"in_pytorch": ["mm"]}, "in_pytorch=['mm'] is not a list of names"),
        ({"cache": 3}, "cache=3 is not the path of a folder"),
        ({"sizes": {"a[0]": (1, 2)}}, "sizes['a[0]']=(1, 2) is not (least, usual, most)"),
        ({"sizes": {"a[0]": (3, 2, 4)}}, "does not rise"),
        ({"sizes": [1]}, "sizes=[1] is not a dict"),
    ],
)
def test_bad_values_are_named(options, said):
    with pytest.raises(LadderError) as caught:
        TensorRTOptions(**options)
    assert said in str(caught.value)


@pytest.mark.deep
def test_nothing_of_tensorrt_is_imported():
    code = (
        "import sys, ladderize.backends.tensorrt.engines; "
        "print([n for n in sys.modules if 'tensorrt' in n and not n.startswith('ladderize.')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# ---- sizes


def dynamic(most: int | None = None) -> GraphModule:
    ids = torch.zeros(2, 6)
    torch._dynamo.mark_dynamic(ids, 1, **({} if most is None else {"min": 3, "max": most}))
    return captured(lambda words: (words * 2).sum(), ids)


def captured(function, *tensors) -> GraphModule:
    gm, _ = capture(function, *tensors)
    for node in gm.graph.nodes:
        node.meta["val"] = node.meta.get("example_value")
    return gm


def inputs(gm: GraphModule):
    return gm.graph.find_nodes(op="placeholder")


def test_extents_come_from_the_graph():
    (extent,) = find_extents(inputs(dynamic(64)), {}).of_symbol.values()
    assert extent == Extent(3, 6, 64)


@pytest.mark.parametrize("name", ["words[1]", "*"])
def test_extents_come_from_the_options(name):
    (extent,) = find_extents(inputs(dynamic()), {name: (1, 128, 256)}).of_symbol.values()
    assert extent == Extent(2, 128, 256)  # Dynamo traces anew for a size of one


def test_options_widen_nothing_that_the_graph_was_traced_for():
    (extent,) = find_extents(inputs(dynamic(64)), {"words[1]": (1, 80, 256)}).of_symbol.values()
    assert extent == Extent(3, 64, 64)


def test_a_size_that_nobody_bounds_is_named():
    with pytest.raises(LadderError) as caught:
        find_extents(inputs(dynamic()), {})
    assert "'words[1]': " in str(caught.value)
    assert "of 2 or more" in str(caught.value)
    assert '"sizes"' in str(caught.value)


def test_a_size_that_is_not_dynamic_is_named():
    with pytest.raises(
        LadderError, match=r"sizes\['ids\[0\]'\]; there are \['\*', .*'words\[1\]'\]"
    ):
        find_extents(inputs(dynamic(64)), {"ids[0]": (1, 2, 3)})


def test_extents_of_computed_sizes():
    gm = dynamic(64)
    (size,) = (v for n in inputs(gm) if isinstance(v := n.meta["val"], torch.SymInt))
    extents = find_extents(inputs(gm), {})
    assert extents.of(3) == Extent(3, 3, 3)
    assert extents.of(2 * size + 1) == Extent(7, 13, 129)
    assert extents.of(100 - size) == Extent(36, 94, 97)  # falls as the size rises


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("L['input_ids'].size()[1]", "input_ids[1]"),
        ("L['args'][0].size()[1]", "args[0][1]"),
        ("L['self'].cache.size()[2]", "cache[2]"),
        ("something else", "something else"),
    ],
)
def test_short_names(source, name):
    assert short_name(source) == name


# ---- kinds


def traced(function, *shapes, dtype=torch.float32) -> GraphModule:
    with new_fake_mode():
        return make_fx(function)(*(torch.empty(shape, dtype=dtype) for shape in shapes))


def text(gm: GraphModule, weights=()) -> str:
    return canonical_text(gm, weights, Extents({}))


def test_names_make_no_kind():
    first = traced(lambda x, w: (x @ w + 1,), (2, 3), (3, 4))
    second = traced(lambda hidden, weight: (hidden @ weight + 1,), (2, 3), (3, 4))
    for node in second.graph.nodes:
        node._rename(f"another_{node.name}")
    assert text(first) == text(second)


@pytest.mark.parametrize(
    "other",
    [
        traced(lambda x, w: (x @ w + 2,), (2, 3), (3, 4)),  # an argument
        traced(lambda x, w: (x @ w - 1,), (2, 3), (3, 4)),  # a target
        traced(lambda x, w: (x @ w + 1,), (2, 3), (3, 5)),  # a shape
        traced(lambda x, w: (x @ w + 1,), (2, 3), (3, 4), dtype=torch.float16),
        traced(lambda x, w: (w.t() @ x.t() + 1,), (2, 3), (3, 4)),  # which operand is which
    ],
)
def test_what_makes_a_kind(other):
    assert text(traced(lambda x, w: (x @ w + 1,), (2, 3), (3, 4))) != text(other)


CONSTANTS = (torch.ones(2), torch.zeros(2))


def test_weights_strides_and_constants_make_a_kind():
    gm = traced(lambda x, w: (x @ w,), (3, 3), (3, 3))
    assert text(gm, ["w_1"]) != text(gm)
    turned = traced(lambda x, w: (x @ w,), (3, 3), (3, 3))
    inputs(turned)[1].meta["val"] = inputs(turned)[1].meta["val"].t()
    assert text(turned) != text(gm)
    one, two = (make_fx(partial(torch.add, constant))(torch.zeros(2)) for constant in CONSTANTS)
    assert text(one) != text(two)


def test_sizes_make_a_kind_not_their_symbols():
    def of(symbol_most: int) -> str:
        gm = dynamic(symbol_most)
        return canonical_text(gm, (), find_extents(inputs(gm), {}))

    assert of(64) == of(64)
    assert of(64) != of(65)


def test_a_key_is_of_everything_that_a_plan_depends_on():
    assert plan_key("a", {"level": 1}) == plan_key("a", {"level": 1})
    assert len({plan_key("a", {"level": 1}), plan_key("a", {"level": 2}), plan_key("b", {})}) == 3


# ---- plans in files


def test_plans_are_kept(tmp_path):
    PlanCache(tmp_path / "new").keep("key", PLAN)
    assert PlanCache(tmp_path / "new").find("key") == PLAN
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["key.plan"]
    assert PlanCache(tmp_path).find("key") is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: data[:0],
        lambda data: data.replace(b"SHUFFLE", b"SOFTMAX"),
        lambda data: b"another make" + data[12:],
    ],
)
def test_files_that_are_not_whole_are_not_used(tmp_path, spoil):
    path = tmp_path / "key.plan"
    path.write_bytes(spoil(encode_plan(PLAN)))
    cache = PlanCache(tmp_path)
    assert cache.find("key") is None
    assert cache.unusable == [path]
    cache.keep("key", PLAN)
    assert PlanCache(tmp_path).find("key") == PLAN


def test_a_plan_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(_):
        raise OSError("no space left")

    monkeypatch.setattr("ladderize.backends.tensorrt.engines.plan_cache.encode_plan", fail)
    with pytest.raises(OSError, match="no space left"):
        PlanCache(tmp_path).keep("key", PLAN)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_in_bytes():
    assert decode_plan(encode_plan(PLAN)) == PLAN


# ---- layouts


@pytest.mark.parametrize(
    ("tensor", "order"),
    [
        (torch.empty(2, 3), None),
        (torch.empty(2, 3).t(), (1, 0)),
        (torch.empty(2, 4, 3, 5).transpose(1, 2), (0, 2, 1, 3)),
        (torch.empty(1, 4, 1, 5).transpose(1, 2), None),  # a dim of one lies anywhere
        (torch.empty(3, 1).expand(3, 4), None),  # does not fill memory
        (torch.empty(2, 6)[:, ::2], None),
        (torch.empty(()), None),
        (7, None),
    ],
)
def test_memory_order(tensor, order):
    assert memory_order(tensor) == order


def test_engines_see_contiguous_tensors():
    def function(x, y):
        return (x + 1).transpose(1, 2), x.sum() + y

    x, y = torch.randn(2, 3, 4).transpose(0, 1), torch.randn(())
    gm = make_fx(function)(x, y)
    layouts = make_contiguous(gm, [x, y], function(x, y))
    gm.recompile()
    given = layouts.enter([x, y])
    assert given[0].is_contiguous()
    assert given[0].data_ptr() == x.data_ptr()
    raw = gm(*given)
    assert raw[0].is_contiguous()
    for ours, theirs in zip(layouts.leave(raw), function(x, y), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()


# ---- what is bound, and the calls that an engine makes


class Doubling:
    """Stands in for TensorRT's engine and context, and records calls."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def is_shape_inference_io(self, name: str) -> bool:
        return name == "in1"

    def get_tensor_dtype(self, _: str) -> torch.dtype:
        return torch.float32

    def create_execution_context(self) -> "Doubling":
        self.told.append(("context",))
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.told.append(("shape", name, shape))
        self.shapes[name] = shape
        return shape[0] <= 4

    def get_tensor_profile_shape(self, *_: object) -> list[tuple[int, ...]]:
        return [(1, 2), (2, 2), (4, 2)]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.told.append(("address", name, address))

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        return self.shapes["in0"]

    def execute_async_v3(self, stream: int) -> bool:
        self.told.append(("run", stream))
        return True


@pytest.fixture
def device(monkeypatch) -> Doubling:
    engine = Doubling()
    monkeypatch.setattr(run_plans, "DEVICE", "cpu")
    monkeypatch.setattr(run_plans.trt, "deserialize", lambda _: engine)
    monkeypatch.setattr(run_plans.trt, "torch_dtype", lambda dtype: dtype)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=7))
    return engine


def test_an_engine_is_told_shapes_once_and_addresses_at_each_call(device):
    engine = run_plans.Engine(PLAN)
    x = torch.zeros(3, 2)
    assert engine(x, 5).shape == (3, 2)
    assert [what[0] for what in device.told] == [
        *("context", "shape", "address", "address", "address", "run")
    ]
    assert device.told[1] == ("shape", "in0", (3, 2))
    assert device.told[2] == ("address", "in0", x.data_ptr())
    assert device.told[-1] == ("run", 7)
    device.told.clear()
    engine(x, 6)
    assert [what[0] for what in device.told] == ["address", "address", "address", "run"]
    engine(torch.zeros(2, 4).t()[:, ::1], 6)
    assert ("shape", "in0", (4, 2)) in device.told


def test_a_shape_out_of_range_is_refused(device):
    del device
    with pytest.raises(LadderError, match=r"\(5, 2\) is not between \(1, 2\) and \(4, 2\)"):
        run_plans.Engine(PLAN)(torch.zeros(5, 2), 5)


def test_a_plan_that_tensorrt_refuses(monkeypatch):
    monkeypatch.setattr(run_plans.trt, "deserialize", lambda _: None)
    with pytest.raises(LadderError, match="cannot load a plan on this device"):
        run_plans.Engine(PLAN)


def test_weights_that_are_not_taken_are_named(device, monkeypatch):
    del device
    monkeypatch.setattr(run_plans.trt, "refit", lambda _, weights: list(weights))
    plan = CachedPlan(b"", ("in0",), ("output0",), ("weight1",), (), 0.0)
    with pytest.raises(
        LadderError, match=r"rejected the new weights \(refit failed\):\n  - weight1"
    ):
        run_plans.Engine(plan).refit([torch.zeros(2)])


class Multiply(nn.Module):
    """An engine that holds a weight, or gets one as an input."""

    def __init__(self, plan: CachedPlan) -> None:
        super().__init__()
        self.plan, self.held = plan, None

    def refit(self, weights) -> None:
        (self.held,) = weights

    def forward(self, x, *weights):
        return x * (weights[0] if weights else self.held)


def built(holds_weights: bool) -> tuple[Built, list[Multiply]]:
    """Two equal islands `f(a, w, b) = a * w + b` of one engine and one part in PyTorch."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.engine = nn.Identity()

        def forward(self, a, w, b):
            return (self.engine(a, w) if not holds_weights else self.engine(a)) + b, w

    gm = _trace(Whole())
    plan = CachedPlan(b"", ("in0",), ("output0",), ("weight1",) if holds_weights else (), (), 0.0)
    layouts = make_contiguous(gm, [None] * 3, [None] * 2)
    kind = BuiltKind(
        gm, {"engine": plan}, {"engine": (1,) if holds_weights else ()}, layouts, (), frozenset()
    )
    made: list[Multiply] = []

    def make(plan: CachedPlan) -> Multiply:
        made.append(Multiply(plan))
        return made[-1]

    names = (("a", False), ("w", True), ("b", False))
    return Built({"one": kind, "two": kind}, {"one": names, "two": names}, None, make), made


def _trace(module: nn.Module) -> GraphModule:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, *_) -> bool:
            return True

    return GraphModule(module, Tracer().trace(module))


@pytest.mark.parametrize("holds_weights", [False, True])
def test_islands_are_bound_to_their_own_weights(holds_weights):
    found, made = built(holds_weights)
    one = found.bind("one", {"w": torch.tensor(2.0)})
    two = found.bind("two", {"w": torch.tensor(3.0), "surplus": torch.tensor(0.0)})
    assert len(made) == (2 if holds_weights else 1)
    for _ in range(2):
        assert one(torch.tensor(5.0), torch.tensor(1.0)) == (11.0, 2.0)
        assert two(torch.tensor(5.0), torch.tensor(1.0)) == (16.0, 3.0)
    assert found.bind("one", {"w": torch.tensor(4.0)}) is one
    assert one(torch.tensor(5.0), torch.tensor(1.0)) == (21.0, 4.0)
    assert two(torch.tensor(5.0), torch.tensor(1.0)) == (16.0, 3.0)


def test_weights_that_are_missing_are_named():
    with pytest.raises(LadderError, match=r"one was bound without:\n  - w"):
        built(False)[0].bind("one", {})
