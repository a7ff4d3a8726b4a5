"""Programs traced by torch.export and torch.fx, rewritten without compiling."""

import pytest
import torch
from helpers.eager_ladders import llama_ladder, tiny_llama, tokens
from helpers.graphs import Residual
from helpers.parallel_nets import eager_ladder, make_ids, make_net
from torch import nn
from torch.export import export

import ladderize
from ladderize import LadderError, rewrite


@pytest.fixture
def x():
    return torch.randn(3, 8)


def exported(model, x, form):
    program = export(model, (x,))
    return program.run_decompositions() if form == "decomposed" else program


@pytest.mark.parametrize("form", ["training", "decomposed"])
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_exported_programs(form, staleness, x):
    model = Residual()
    program = exported(model, x, form)
    before = str(program.graph)
    ladder = rewrite(program, staleness=staleness, expect_blocks=4)
    torch.testing.assert_close(ladder.module()(x), model.ladder(x, staleness=staleness))
    assert str(program.graph) == before
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.skipif(
    torch.__version__ < "2.12", reason="export of torch 2.11 guards on the length of this model"
)
def test_exported_llama_of_any_length():
    model = tiny_llama(2)
    program = export(model, (), {"input_ids": tokens()}, dynamic_shapes={"input_ids": any_size()})
    ladder = rewrite(program, layers="last:1", expect_blocks=4).module()
    for shape in ((2, 7), (3, 5)):
        ids = tokens(*shape)
        with torch.no_grad():
            wanted = llama_ladder(model, ids, range(2, 4))
            torch.testing.assert_close(ladder(input_ids=ids).logits, wanted, atol=1e-5, rtol=0)


def any_size():
    return {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=64)}


def test_decomposed_decoder_of_any_length():
    """A Llama of one size: tests/zoo, under --deep."""
    net = make_net(2)
    program = export(net, (make_ids(),), dynamic_shapes={"ids": any_size()}).run_decompositions()
    ladder = rewrite(program, expect_blocks=4).module()
    for shape in ((2, 8), (3, 5)):
        with torch.no_grad():
            found, wanted = ladder(make_ids(*shape)), eager_ladder(net, make_ids(*shape))
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_gradients_of_an_exported_ladder(x):
    model = Residual()
    ladder = rewrite(export(model, (x,))).module()
    found = torch.autograd.grad(ladder(x).square().sum(), list(ladder.parameters()))
    wanted = torch.autograd.grad(model.ladder(x).square().sum(), list(model.parameters()))
    torch.testing.assert_close(found, wanted)


def test_an_exported_ladder_is_saved_and_loaded(x, tmp_path):
    model = Residual()
    torch.export.save(rewrite(export(model, (x,))), tmp_path / "ladder.pt2")
    loaded = torch.export.load(tmp_path / "ladder.pt2").module()
    torch.testing.assert_close(loaded(x), model.ladder(x))


def test_in_place_sums_of_an_exported_program(x):
    model = Residual(combine=lambda x, h: x.add_(h))
    model.head = nn.Identity()  # the sum itself is the output, whose node is replaced
    ladder = rewrite(export(model, (x,))).module()
    torch.testing.assert_close(ladder(x), model.ladder(x))


class Bottleneck(nn.Module):
    """torchvision's spelling: `out += identity; relu_`, as modules."""

    def __init__(self, width, out=None):
        super().__init__()
        out = out or width
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if out != width:
            self.downsample = nn.Sequential(nn.Conv2d(width, out, 1), nn.BatchNorm2d(out))

    def branch(self, x):
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.branch(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stage1 = nn.Sequential(*[Bottleneck(4) for _ in range(3)])
        self.stage2 = nn.Sequential(Bottleneck(4, 8), *[Bottleneck(8) for _ in range(3)])

    def forward(self, x):
        return self.stage2(self.stage1(self.stem(x))).mean((2, 3))

    def ladder(self, x):
        x = before = self.stem(x)
        for block in self.stage1:
            x, before = torch.relu(x + block.branch(before)), x
        first, *rest = self.stage2
        x = before = torch.relu(first.downsample(x) + first.branch(x))
        for block in rest:
            x, before = torch.relu(x + block.branch(before)), x
        return x.mean((2, 3))


@pytest.fixture
def resnet():
    return ResNet().eval()


def test_symbolically_traced_modules(resnet):
    """`call_module` nodes, in-place modules and sums; the user's modules stay as they are."""
    image = torch.randn(2, 3, 8, 8)
    traced = torch.fx.symbolic_trace(resnet)
    assert traced.graph.find_nodes(op="call_module")
    ladder = rewrite(traced, (image,), expect_blocks=6)
    torch.testing.assert_close(ladder(image), resnet.ladder(image))
    torch.testing.assert_close(traced(image), resnet(image))
    assert all(m.inplace for m in resnet.modules() if isinstance(m, nn.ReLU))
    assert ladder.state_dict().keys() == resnet.state_dict().keys()


@pytest.mark.parametrize("form", ["training", pytest.param("decomposed", marks=pytest.mark.deep)])
def test_an_exported_resnet(form, resnet):
    image = torch.randn(2, 3, 8, 8)
    program = exported(resnet, image, form)
    ladder = rewrite(program, expect_blocks=6).module()
    torch.testing.assert_close(ladder(image), resnet.ladder(image))


def test_inputs_by_name_and_defaults():
    class Net(Residual):
        def forward(self, x, scale, bias=None):  # noqa: ARG002
            return super().forward(x * scale)

    model, x = Net(), torch.randn(3, 8)
    traced = torch.fx.symbolic_trace(model)
    ladder = rewrite(traced, (x,), {"scale": torch.ones(8)})
    torch.testing.assert_close(ladder(x, torch.ones(8)), model.ladder(x))


# -- reports


def test_an_exported_program_is_explained_as_its_model_is(x):
    model = Residual()
    of_model = ladderize.explain(model, x, options={"blocks": "last:2"})
    of_program = ladderize.explain(export(model, (x,)), options={"blocks": "last:2"})
    assert [(b.layer, b.reads_after, b.kind) for b in of_program.blocks] == [
        (b.layer, b.reads_after, b.kind) for b in of_model.blocks
    ]
    assert len(of_program.diff()) == 2
    refused = ladderize.explain(export(model, (x,)), options={"expect_blocks": 9})
    assert "9 blocks were expected, 4 were found" in str(refused)


def test_a_rewrite_leaves_a_report(x):
    rewrite(export(Residual(), (x,)))
    assert len(ladderize.last_report().diff()) == 3
    with pytest.raises(LadderError):
        rewrite(export(Residual(), (x,)), expect_blocks=9)
    assert not ladderize.last_report().ok


# -- bad input


def test_a_traced_module_without_inputs_is_refused(resnet):
    with pytest.raises(LadderError, match="0 of 1 inputs were given") as caught:
        rewrite(torch.fx.symbolic_trace(resnet))
    assert "input x" in str(caught.value)


def test_options_of_sharding_and_lowering_are_refused(x):
    with pytest.raises(LadderError, match=r"lowering= belongs to torch\.compile"):
        rewrite(export(Residual(), (x,)), lowering="eager")


def test_a_refused_program_is_untouched(x):
    program = export(Residual(), (x,))
    before = str(program.graph)
    with pytest.raises(LadderError, match="5 blocks were expected, 4 were found"):
        rewrite(program, expect_blocks=5)
    assert str(program.graph) == before


def test_a_program_of_a_whole_two_block_net_is_no_layer(x):
    model = Residual(2)
    model.embed = model.head = nn.Identity()
    ladder = rewrite(export(model, (x,))).module()
    torch.testing.assert_close(ladder(x), model.ladder(x))
