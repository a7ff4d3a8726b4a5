"""`torch.compile(backend="ladderize")` on one device: options, refusals, caches, files."""

import subprocess
import sys
import textwrap
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.graphs import Residual
from helpers.programs import run_program
from torch import nn
from torch._inductor.custom_graph_pass import CustomGraphPass

from ladderize import LadderError, LadderWarning
from ladderize.backends.inductor import DeferInInductor
from ladderize.passes import before_autograd
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.reroute import RerouteReads


def compiled(model, dynamic=None, fullgraph=True, **options):
    return torch.compile(
        model,
        backend="ladderize",
        fullgraph=fullgraph,
        dynamic=dynamic,
        options={"lowering": "eager", **options},
    )


@pytest.fixture
def x():
    return torch.randn(3, 8)


@pytest.fixture
def model():
    return Residual()


@pytest.mark.parametrize("lowering", ["eager", "aot_eager"])
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_equals_the_eager_ladder(model, x, lowering, staleness):
    out = compiled(model, lowering=lowering, staleness=staleness)(x)
    torch.testing.assert_close(out, model.ladder(x, staleness=staleness))


def test_inductor_with_mode_and_checked_code(model, x):
    run = compiled(model, lowering="inductor", verify="code", mode="max-autotune-no-cudagraphs")
    torch.testing.assert_close(run(x), model.ladder(x))


def test_code_that_cannot_be_read_is_refused_before_it_is_compiled(model, x):
    options = {"lowering_options": {"cpp_wrapper": True}, "verify": "code"}
    with pytest.raises(LadderError, match="makes Inductor write C\\+\\+"):
        compiled(model, lowering="inductor", **options)(x)


def test_mode_alone_reaches_inductor(model, x):
    run = torch.compile(model, backend="ladderize", mode="max-autotune-no-cudagraphs")
    torch.testing.assert_close(run(x), model.ladder(x))
    with pytest.raises(LadderError, match="mode='fast' is not one of"):
        torch.compile(model, backend="ladderize", mode="fast")(torch.randn(7, 8))


def test_blocks_layers_and_dynamic_shapes(model, x):
    run = compiled(model, dynamic=True, blocks="last:50%")
    for batch in (3, 5):
        x = torch.randn(batch, 8)
        torch.testing.assert_close(run(x), model.ladder(x, chosen={2, 3}))


def test_gradients_equal_the_eager_ladder(model, x):
    for lowering in ("eager", "aot_eager"):
        torch._dynamo.reset()
        weights = list(model.parameters())
        found = torch.autograd.grad(compiled(model, lowering=lowering)(x).square().sum(), weights)
        expected = torch.autograd.grad(model.ladder(x).square().sum(), weights)
        torch.testing.assert_close(found, expected)


def test_in_place_adds_do_not_overwrite_what_is_read_late(x):
    model = Residual(combine=lambda x, h: x.add_(h))
    torch.testing.assert_close(compiled(model)(x), model.ladder(x))


def test_the_backend_is_found_without_an_import():
    code = """
        import torch
        assert "ladderize" in torch._dynamo.list_backends()
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
            def forward(self, x):
                x = x.tanh()
                for layer in self.layers:
                    x = x + layer(x).relu()
                return x
        net, x = Net(), torch.randn(2, 4)
        out = torch.compile(net, backend="ladderize", options={"lowering": "eager"})(x)
        assert not torch.allclose(out, net(x))
        print("found")
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert ran.stdout.strip() == "found", ran.stderr


def test_unknown_option_names_the_nearest(model, x):
    with pytest.raises(LadderError, match="did you mean 'staleness'"):
        compiled(model, stalenes=2)(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": "0:9"}, "blocks='0:9' selects 4, 5, 6, 7, 8; there are 0 to 3"),
        ({"blocks": "2:2"}, "selects none of 4"),
        ({"expect_blocks": 3}, "3 blocks were expected, 4 were found"),
    ],
)
def test_impossible_selections(model, x, options, message):
    with pytest.raises(LadderError) as caught:
        compiled(model, **options)(x)
    assert message in str(caught.value)


def test_layers_of_sums_written_in_the_loop_of_the_model(model, x):
    """No module of the list adds, so the layer is that of the branch."""
    found = compiled(model, layers="1:3")(x)
    torch.testing.assert_close(found, model.ladder(x, chosen={1, 2}))


def test_no_block_is_an_error_unless_not_strict(x):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with pytest.raises(LadderError, match="No residual block was found"):
        compiled(net)(x)
    torch._dynamo.reset()
    with pytest.warns(LadderWarning, match="standard graph is compiled") as caught:
        out = compiled(net, strict=False)(x)
    assert len([w for w in caught if w.category is LadderWarning]) == 1
    torch.testing.assert_close(out, net(x))


def test_errors_say_nothing_but_what_is_wrong(x):
    """Dynamo adds advice for reporting bugs to torch to the errors that it lets through."""
    with pytest.raises(LadderError) as caught:
        compiled(nn.Linear(8, 8))(x)
    error = caught.value
    assert str(error) == str(LadderError(error.summary, error.blockers, error.cure))
    assert str(error) in "".join(traceback.format_exception(error))


def test_not_strict_leaves_a_refused_graph_untouched(x):
    class Aliased(Residual):
        def forward(self, x):
            x = self.embed(x)
            kept = x.view(-1)
            for layer in self.layers:
                x += layer(x)
            return x, kept

    model = Aliased()
    with torch.no_grad(), pytest.raises(LadderError, match="another view shares"):
        compiled(model)(x)
    for lowering in ("eager", "aot_eager"):
        torch._dynamo.reset()
        with torch.no_grad(), pytest.warns(LadderWarning):
            out = compiled(model, strict=False, lowering=lowering)(x)
        torch.testing.assert_close(out, model(x), msg=lowering)


class Broken(Residual):
    def forward(self, x):
        x = self.embed(x)
        x = x + self.layers[0](x)
        x = x + self.layers[1](x)
        torch._dynamo.graph_break()  # the line
        x = x + self.layers[2](x)
        x = x + self.layers[3](x)
        return self.head(x)


class BrokenInLoop(Residual):
    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = self.one(layer, x)
            torch._dynamo.graph_break()
        return self.head(x)

    def one(self, layer, x):
        x = x + layer(x)
        return x + layer(x)


def _line_of(text):
    source = Path(__file__).read_text().splitlines()
    (number,) = (i for i, line in enumerate(source, 1) if line.strip() == text)
    return f"{__file__}:{number}"


def test_a_break_inside_the_stream_is_named(x):
    with pytest.raises(LadderError) as caught:
        compiled(Broken(), fullgraph=False)(x)
    text = str(caught.value)
    assert "A graph break cuts the residual stream: 2 more blocks" in text
    assert _line_of("torch._dynamo.graph_break()  # the line") in text
    assert "fullgraph=True" in text


def test_a_break_in_a_loop_names_the_frame_that_was_left(x):
    with pytest.raises(LadderError) as caught:
        compiled(BrokenInLoop(), fullgraph=False)(x)
    text = str(caught.value)
    assert "holds 2 blocks, but is only a part of what was compiled" in text
    assert _line_of("x = self.one(layer, x)") in text


def test_a_break_with_all_blocks_on_one_side_is_fine(x):
    class Fine(Residual):
        def forward(self, x):
            x = super().forward(x)
            torch._dynamo.graph_break()
            return x

    model = Fine()
    torch.testing.assert_close(compiled(model, fullgraph=False)(x), model.ladder(x))


def test_recompiling_is_not_a_break(x):
    model = Residual()
    run = compiled(model, dynamic=False, fullgraph=False)
    for batch in (2, 3):
        x = torch.randn(batch, 8)
        torch.testing.assert_close(run(x), model.ladder(x))


def test_debug_dir_has_every_stage(model, x, tmp_path):
    compiled(model, debug_dir=tmp_path)(x)
    files = sorted(path.name for path in tmp_path.glob("rank0/*/*.py"))
    assert files == [
        "01_InlineRegions.py",
        "02_Functionalize.py",
        "03_SpellSums.py",
        "04_RerouteReads.py",
    ]


def test_verify_graph_stops_a_wrong_rewrite(model, x, monkeypatch):
    def wrong(reads):
        return RerouteReads((replace(reads[0], sources={3: 1}),))

    monkeypatch.setattr(before_autograd, "RerouteReads", wrong)
    with pytest.raises(LadderError, match="does not compute the ladder recurrence"):
        compiled(model)(x)
    torch._dynamo.reset()
    compiled(model, verify="off")(x)


CACHED = """
import torch
from torch._dynamo.utils import counters
from helpers.graphs import Residual
torch.manual_seed(0)
model, x = Residual(), torch.randn(3, 8)
for staleness in %s:
    torch._dynamo.reset()
    counters.clear()
    options = {"verify": "code", "staleness": staleness}
    with torch.no_grad():
        torch.compile(model, backend="ladderize", fullgraph=True, options=options)(x)
    hits = counters["inductor"]["fxgraph_cache_hit"]
    hits += counters["aot_autograd"]["autograd_cache_hit"]
    print("hits", hits, "misses", counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.deep
def test_a_second_process_hits_the_cache_and_other_options_miss_it(tmp_path, monkeypatch):
    """Processes with different hash seeds."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))

    def compile_in(server, *staleness):
        script = tmp_path / "cached.py"
        script.write_text(CACHED % str(staleness))
        return run_program(script, server=server).splitlines()

    assert compile_in(0, 1) == ["hits 0 misses 1"]
    again, other = compile_in(1, 1, 2)
    assert again.endswith("misses 0"), again
    assert not again.startswith("hits 0"), again
    assert other == "hits 0 misses 1"


class CountingPass(CustomGraphPass):
    calls = 0

    def __call__(self, graph):
        CountingPass.calls += len(graph.nodes) > 0

    def uuid(self):
        return "counting"


def test_the_users_own_post_pass_runs_too(model, x):
    run = compiled(
        model,
        lowering="inductor",
        lowering_options={
            "post_grad_custom_post_pass": CountingPass(),
            "fx_graph_cache": False,
        },
    )
    with torch.no_grad(), torch._functorch.config.patch(enable_autograd_cache=False):
        run(x)
    assert CountingPass.calls == 1


def test_cache_identity_follows_options_and_user_passes():
    ours = DeferInInductor(verify="graph")
    assert ours.uuid() == DeferInInductor(verify="graph").uuid()
    assert ours.uuid() != DeferInInductor(verify="code").uuid()
    assert ours.uuid() != DeferInInductor(verify="graph", first=(CountingPass(),)).uuid()
    assert ours.uuid() != DeferInInductor("graph", waits=DeferWaits(max_ahead=2)).uuid()
    assert DeferInInductor(verify="graph", first=(print,)).uuid() is None


def test_bad_inductor_options_are_named(model, x):
    with pytest.raises(LadderError, match="max_autotun"):
        compiled(model, lowering="inductor", lowering_options={"max_autotun": True})(x)


def test_no_warning_on_the_way(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("error", LadderWarning)
        compiled(model)(x)


@pytest.mark.parametrize("write", ["index_copy_", "setitem", "copy_"])
def test_writes_that_nothing_reads_are_kept(write):
    """A KV cache is written by a call whose result is thrown away."""

    class Caching(Residual):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", torch.zeros(5, 8))

        def forward(self, x):
            if write == "index_copy_":
                self.cache.index_copy_(0, torch.arange(3), 2 * x)
            elif write == "setitem":
                self.cache[:3] = 2 * x
            else:
                self.cache[:3].copy_(2 * x)
            return super().forward(x)

    x = torch.randn(3, 8)
    for lowering in ("eager", "aot_eager"):
        torch._dynamo.reset()
        model = Caching()
        with torch.no_grad():
            torch.testing.assert_close(compiled(model, lowering=lowering)(x), model.ladder(x))
        torch.testing.assert_close(model.cache[:3], 2 * x)
