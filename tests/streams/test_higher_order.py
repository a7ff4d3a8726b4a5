"""Layers inside subgraphs: gradient checkpointing, nested regions, loops."""

import copy
from functools import partial

import pytest
import torch
from helpers.graphs import capture
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers import LlamaConfig, LlamaForCausalLM

from ladderize import LadderError
from ladderize.config.options import LadderConfig
from ladderize.graph.collectives import launched_by
from ladderize.graph.higher_order import bodies
from ladderize.passes.before_autograd import rewrite_graph
from ladderize.passes.drop_grad_regions import DropGradRegions
from ladderize.passes.functionalize import Functionalize
from ladderize.passes.inline_regions import InlineRegions, refuse_sharded_regions
from ladderize.passes.outline_regions import OutlineRegions
from ladderize.passes.rewriting_state import RankGroup, Rewriting
from ladderize.passes.runner import Log, run_pass
from ladderize.streams.find import find_streams
from ladderize.testing import run_with_gradients

WIDTH, HIDDEN = 8, 64


class Layer(nn.Module):
    """Two blocks; inside of each a hidden value that is larger than the stream."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))
            for _ in range(2)
        )

    def forward(self, x):
        for branch in self.branches:
            x = x + branch(x)
        return x


class Net(nn.Module):
    """`call(layer, x)` runs a layer; `ladder` is the eager ladder, written out."""

    def __init__(self, call=lambda layer, x: layer(x), num_layers=3):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(num_layers))
        self.call = call

    def forward(self, x):
        x = torch.tanh(x)
        for layer in self.layers:
            x = self.call(layer, x)
        return x

    def ladder(self, x):
        stream = [torch.tanh(x)]
        for layer in self.layers:
            for branch in layer.branches:
                stream.append(stream[-1] + branch(stream[max(len(stream) - 2, 0)]))
        return stream[-1]


def keep_matmuls():
    def policy(_, op, *args, **kwargs):  # noqa: ARG001  # the signature of every policy
        is_matmul = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return CheckpointPolicy.MUST_SAVE if is_matmul else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


plain = partial(checkpoint, use_reentrant=False)
CALLS = {
    "non-reentrant": plain,
    "reentrant": partial(checkpoint, use_reentrant=True),
    "selective": partial(checkpoint, use_reentrant=False, context_fn=keep_matmuls),
    "nested": lambda layer, x: plain(lambda x: plain(layer, x), x),
    "nested part": lambda layer, x: plain(
        lambda x: layer.branches[1](y := x + plain(layer.branches[0], x)) + y, x
    ),
    "with a product": lambda layer, x: plain(lambda x, y: layer(x * y), x, torch.ones(WIDTH)),
    "nested_compile_region": torch.compiler.nested_compile_region(lambda layer, x: layer(x)),
}

AUTOGRAD_TRACES_ANEW = ["non-reentrant", "selective", "nested_compile_region"]


def compiled(model, lowering="aot_eager", **options):
    options = {"lowering": lowering, **options}
    return torch.compile(model, backend="ladderize", fullgraph=True, options=options)


@pytest.mark.parametrize(
    ("call", "lowering"),
    [
        *((call, "eager") for call in CALLS),
        *((call, "aot_eager") for call in AUTOGRAD_TRACES_ANEW),
        *(
            pytest.param(call, "aot_eager", marks=pytest.mark.deep)
            for call in CALLS
            if call not in AUTOGRAD_TRACES_ANEW
        ),
    ],
)
def test_equals_the_eager_ladder(call, lowering):
    model, args = Net(CALLS[call]), (torch.randn(3, WIDTH),)
    found = run_with_gradients(compiled(model, lowering, expect_blocks=6), model, args)
    torch.testing.assert_close(found, run_with_gradients(model.ladder, model, args))


def test_through_inductor():
    model, args = Net(plain, num_layers=2), (torch.randn(3, WIDTH),)
    found = run_with_gradients(compiled(model, "inductor", expect_blocks=4), model, args)
    torch.testing.assert_close(found, run_with_gradients(model.ladder, model, args))


def test_only_some_layers_are_checkpointed():
    model = Net()
    model.call = lambda layer, x: plain(layer, x) if layer is model.layers[1] else layer(x)
    args = (torch.randn(3, WIDTH),)
    found = run_with_gradients(compiled(model, expect_blocks=6), model, args)
    torch.testing.assert_close(found, run_with_gradients(model.ladder, model, args))


def saved_elements(function, model, x):
    """How many elements are kept for the backward, parameters not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.data_ptr(), tuple(tensor.shape)] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x).sum()
    return sum(kept.values())


def test_memory_stays_checkpointed():
    """Two stream values per layer are kept; a standard checkpointed model keeps one."""
    x = torch.randn(5, WIDTH)
    ordinary, checkpointed = Net(), Net(plain)
    without = saved_elements(compiled(ordinary), ordinary, x)
    with_regions = saved_elements(compiled(checkpointed), checkpointed, x)
    num_blocks = 6
    assert with_regions <= (num_blocks + 1) * x.numel()
    assert without > num_blocks * 5 * HIDDEN


def test_a_region_that_holds_no_add_is_left_alone():
    gm, _ = capture(Net(lambda layer, x: x + plain(layer.branches[0], x)), torch.randn(3, WIDTH))
    assert InlineRegions()(gm).changed == 0


@pytest.mark.parametrize(
    ("call", "regions"), [("non-reentrant", 3), ("nested", 6), ("nested part", 3)]
)
def test_taking_apart_and_putting_together_keeps_the_values(call, regions):
    x = torch.randn(3, WIDTH)
    gm, names = capture(Net(CALLS[call]), x)
    inputs = [t.clone() for t in _inputs(gm)]
    before = gm(*inputs)
    assert InlineRegions()(gm).changed == regions
    (stream,) = find_streams(gm, names)
    assert len(stream.blocks) == 6
    OutlineRegions()(gm)
    gm.graph.lint()
    gm.recompile()
    assert sum(node.name.startswith("tag_activation") for node in gm.graph.nodes) == 3
    torch.testing.assert_close(gm(*inputs), before, rtol=0, atol=0)


def _inputs(gm):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(node.meta["example_value"].shape, generator=generator)
        for node in gm.graph.find_nodes(op="placeholder")
    ]


@pytest.mark.skipif(
    torch.__version__ < "2.12", reason="Dynamo of torch 2.11 does not trace requires_grad_()"
)
def test_a_gradient_checkpointed_llama():
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=32,
        use_cache=False,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).train()
    ids = torch.arange(10).view(2, 5)
    options = {"lowering": "eager", "expect_blocks": 2}

    def run():
        torch._dynamo.reset()
        run = torch.compile(model, backend="ladderize", fullgraph=True, options=options)
        return run_with_gradients(lambda ids: run(input_ids=ids).logits, model, (ids,))

    without = run()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.model.layers[0].gradient_checkpointing
    torch.testing.assert_close(run(), without)
    # It is not that the region was never there.
    gm, _ = capture(model, input_ids=ids)
    Functionalize()(gm)
    assert InlineRegions()(gm).changed == 1


# -- kinds that cannot be taken apart


def test_layers_inside_of_a_loop_are_refused():
    class Loop(Net):
        def forward(self, x):
            layer = self.layers[0]

            def body(i, x):
                return i + 1, layer(x)

            from torch._higher_order_ops import while_loop

            _, x = while_loop(lambda i, _: i < 3, body, (torch.zeros((), dtype=torch.int64), x))
            return x

    with torch.no_grad(), pytest.raises(LadderError) as caught:
        compiled(Loop())(torch.randn(3, WIDTH))
    assert "while_loop hides 2 blocks in its body" in str(caught.value)
    assert "test_higher_order.py" in str(caught.value)


def test_checkpointed_layers_are_sharded():
    gm, names = capture(Net(plain), torch.randn(3, WIDTH))
    state = rewrite_graph(Rewriting(gm, names, LadderConfig(), RankGroup(2, "group")))
    regions = [node for node in state.gm.graph.nodes if bodies(state.gm, node)]
    assert len(regions) == 3
    for (body,) in (bodies(state.gm, node) for node in regions):
        assert [launched_by(node) for node in body.graph.nodes].count("reduce") == 2


class UnderAutocast(Net):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_other_regions_are_not_sharded():
    gm = torch.export.export(UnderAutocast(), (torch.randn(3, WIDTH),)).module()
    run_pass(gm, InlineRegions(), Log())
    with pytest.raises(LadderError, match="These regions cannot be sharded") as caught:
        refuse_sharded_regions(gm)
    assert str(caught.value).count("wrap_with_autocast") == 1


# ---- regions without gradients


class Tables(nn.Module):
    """One region over a buffer, one over a parameter, one over the input."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.arange(float(WIDTH)))
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        with torch.no_grad():
            positions = torch.arange(x.shape[0])
            table = (self.frequencies * positions[:, None]).cos()
        with torch.no_grad():
            scale = self.linear.weight.abs().max()
        with torch.no_grad():
            mean = x.mean()
        return self.linear(x) * table / scale - mean


def grad_regions(gm):
    return [node for node in gm.graph.nodes if "set_grad_enabled" in str(node.target)]


def test_regions_without_gradients_are_dropped_where_they_mean_nothing():
    torch.manual_seed(0)
    model, x = Tables(), torch.randn(3, WIDTH)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    gm, signature = copy.deepcopy(program.graph_module), program.graph_signature
    trained = frozenset([*signature.inputs_to_parameters, *signature.user_inputs])
    assert len(grad_regions(gm)) == 3
    assert run_pass(gm, DropGradRegions(trained), Log()).changed == 1
    assert len(grad_regions(gm)) == 2
    assert run_pass(gm, DropGradRegions(trained), Log()).changed == 0
    gm.graph.lint()
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    inputs = [state[spec.target] if spec.target else x for spec in signature.input_specs]
    (found,) = gm(*inputs)
    found.sin().sum().backward()
    gradient = model.linear.weight.grad.clone()
    model.zero_grad()
    expected = model(x)
    expected.sin().sum().backward()
    assert torch.equal(found, expected) and torch.equal(gradient, model.linear.weight.grad)
