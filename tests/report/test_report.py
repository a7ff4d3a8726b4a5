"""`ladderize.explain` and `last_report`: findings, side effects, and where reports go."""

import dataclasses
import gc
import inspect
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.eager_ladders import tiny_llama, tokens
from helpers.graphs import Broken, Mlp, Residual, Wrapped, highway
from torch import nn
from torch.distributed._functional_collectives import all_gather_tensor, all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.fx import Graph, GraphModule
from torch.testing._internal.distributed.fake_pg import FakeStore

import ladderize
from ladderize import LadderError, LadderWarning
from ladderize.errors import source_line


@pytest.fixture
def model():
    return Residual()


@pytest.fixture
def x():
    return torch.randn(3, 8)


def reads(report):
    return [(block.reads_before, block.reads_after) for block in report.blocks]


def compiled(model, **options):
    options = {"lowering": "eager", **options}
    return torch.compile(model, backend="ladderize", options=options)


# ---- what is found


def test_llama():
    report = ladderize.explain(tiny_llama(3), input_ids=tokens())
    assert report.ok
    assert not report.refused
    (stream,) = report.streams
    assert [segment.shape for segment in stream.segments] == [(2, 7, 32)]
    assert [block.layer for block in report.blocks] == [0, 0, 1, 1, 2, 2]
    assert [block.kind for block in report.blocks] == ["attention", "MLP"] * 3
    assert report.blocks[2].module == "model.layers.1.self_attn"
    assert report.blocks[3].module == "model.layers.1.mlp"
    assert "modeling_llama.py:" in report.blocks[0].source
    assert reads(report) == [
        ((f"x{i}",), (f"x{max(i - 1, 0)}",)) for i in range(len(report.blocks))
    ]
    assert all(block.is_converted and block.num_nodes > 4 for block in report.blocks)


def test_options_are_those_of_the_compilation(model, x):
    report = ladderize.explain(model, x, options={"blocks": [1, 3], "staleness": 2})
    assert [block.is_converted for block in report.blocks] == [False, True, False, True]
    assert [after for _, after in reads(report)] == [("x0",), ("x0",), ("x2",), ("x1",)]
    assert report.options == (("blocks", "[1, 3]"), ("staleness", "2"))
    with pytest.raises(LadderError, match="did you mean 'staleness'"):
        ladderize.explain(model, x, options={"stalenes": 2})


def test_cross_attention_reads_the_end_of_the_other_stream():
    class TwoStreams(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.ModuleList(Mlp() for _ in range(2))
            self.decoder = nn.ModuleList(nn.Bilinear(8, 8, 8) for _ in range(2))

        def forward(self, x, y):
            x, y = x.tanh(), y.tanh()
            for layer in self.encoder:
                x = x + layer(x)
            for layer in self.decoder:
                y = y + layer(y, x)
            return y

    x, y = torch.randn(2, 3, 8)
    report = ladderize.explain(TwoStreams(), x, y=y, options={"expect_blocks": 4})
    assert [after for _, after in reads(report)] == [
        ("x0",),
        ("x0",),
        ("x0_1", "y1"),
        ("x0_1", "y1"),
    ]
    net = report.to_networkx()
    assert net.edges["x2", "h1_1"]["staleness"] == 0, "the end of stream 0, no stale read"
    assert net.edges["x0_1", "h1_1"]["staleness"] == 1


def test_a_package_named_almost_like_torch_is_the_users():
    beside = f"{Path(torch.__file__).parent}titan/model.py"
    frames = [("/user/train.py", 1), (beside, 7), (torch.nn.functional.__file__, 9)]
    node = Graph().placeholder("x")
    node.meta["stack_trace"] = "\n".join(f'File "{path}", line {n}, in f' for path, n in frames)
    assert source_line(node) == f"{beside}:7"


def test_segments():
    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList(Residual(2, width=8) for _ in range(2))

        def forward(self, x):
            x = self.stages[0](x)
            return self.stages[1](x.reshape(-1, 8).tanh())

    report = ladderize.explain(Stages(), torch.randn(3, 2, 8))
    (stream,) = report.streams
    assert [(s.first, s.last, s.shape) for s in stream.segments] == [
        (0, 1, (3, 2, 8)),
        (2, 3, (6, 8)),
    ]
    assert [after for _, after in reads(report)] == [("x0",), ("x0",), ("x2",), ("x2",)]


def test_refusals_are_reported_with_what_was_found(x):
    report = ladderize.explain(Wrapped(highway), torch.randn(2, 5, 8), options={"expect_blocks": 2})
    assert not report.ok
    (refusal,) = report.refused
    assert "cannot be made a ladder" in refusal.summary
    assert "highway" in refusal.blockers[0].what
    assert "graphs.py:" in refusal.blockers[0].where
    assert [block.is_rewired for block in report.blocks] == [False, False]
    (refusal,) = ladderize.explain(nn.Sequential(nn.Linear(8, 8)), x).refused
    assert "No residual block was found" in refusal.summary
    assert "compile the whole model" in refusal.cure


def test_ladders_are_left_alone_and_named(model, x):
    model.forward = model.ladder
    report = ladderize.explain(model, x)
    assert report.ok
    assert len(report.streams[0].stale) == 3
    assert all("graphs.py" in place for place in report.streams[0].stale)
    assert not report.diff()
    assert "it is a ladder" in report.table(width=120)


def test_a_function_without_a_graph():
    (refusal,) = ladderize.explain(lambda: 3).refused
    assert "captured no graph" in refusal.summary


# ---- graph breaks


def test_every_graph_of_a_broken_call(x):
    report = ladderize.explain(Broken(), x)
    assert not report.ok
    assert [len(graph.streams[0].blocks) for graph in report.graphs] == [4, 4]
    assert [block.graph for block in report.blocks] == [0] * 4 + [1] * 4
    (found,) = report.breaks
    assert "graph_break()" in found.what
    assert "graphs.py:" in found.where
    assert "cuts the residual stream" in report.refused[0].summary
    assert len(report.diff()) == 3, "nothing of the refused graph is rewired"
    assert {"x4", "graph1.x4"} <= set(report.to_networkx())


def test_the_pieces_of_a_broken_call_run_in_their_standard_form(x):
    seen = []

    class Looking(Residual):
        def forward(self, x):
            x = super().forward(x)
            torch._dynamo.graph_break()
            seen.append(x)
            return self.head(x)

    model = Looking()
    ladderize.explain(model, x)
    torch.testing.assert_close(seen[0], Residual.forward(model, x))


def test_a_break_in_a_loop_names_the_line(x):
    class Loop(Residual):
        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
                print("between layers")
            return x

    report = ladderize.explain(Loop(), x)
    assert not report.ok
    line = Loop.forward.__code__.co_firstlineno + 3
    assert report.breaks[0].where == f"{__file__}:{line}"


# ---- nothing is run, nothing stays behind


def entries(fn):
    return torch._dynamo.eval_frame._debug_get_cache_entry_list(fn.__code__)


def test_the_model_is_not_run(x):
    class Counting(Residual):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x):
            return super().forward(self.norm(x))

    model = Counting().train()
    assert len(ladderize.explain(model, x).blocks) == 4
    assert model.norm.num_batches_tracked == 0


@pytest.mark.parametrize("kind", [Residual, Broken])
def test_no_code_stays_behind(kind, x):
    ladderize.explain(kind(), x)
    assert not entries(kind.forward)


def test_sizes_are_forgotten(model):
    seen = []

    def backend(gm, _):
        seen.append(len(gm.graph.find_nodes(op="placeholder")))
        return gm

    for batch in (3, 5, 6):
        ladderize.explain(model, torch.randn(batch, 8))
    torch.compile(model, backend=backend)(torch.randn(7, 8))
    torch._dynamo.reset()
    torch.compile(model, backend=backend)(torch.randn(7, 8))
    assert seen[0] == seen[1], "no size became an input"


@pytest.mark.parametrize(
    ("kind", "isolated"),
    [
        (Residual, True),
        (Broken, False),
        pytest.param(Residual, False, marks=pytest.mark.deep),
        pytest.param(Broken, True, marks=pytest.mark.deep),
    ],
)
def test_a_compiled_model_stays_compiled(kind, isolated, x):
    if isolated and "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        pytest.skip("before torch 2.13")
    options = {"isolate_recompiles": True} if isolated else {}
    compilations = []

    def backend(gm, _):
        compilations.append(gm)
        return gm

    model = kind()
    run = torch.compile(model, backend=backend, **options)
    run(x)
    count = len(compilations)
    assert len(ladderize.explain(run, x).blocks) == 4 * count
    model.compile(backend=backend, **options)
    model(x)
    model.forward = torch.compile(model.forward, backend=backend, **options)
    model(x)
    again, own = len(compilations), dict(vars(model))
    assert len(ladderize.explain(model, x).blocks) == 4 * count
    assert vars(model) == own
    model(x)
    run(x)
    assert len(compilations) == again


def test_a_report_keeps_no_graph_alive(model, x):
    def graphs():
        gc.collect()
        return sum(issubclass(type(thing), GraphModule) for thing in gc.get_objects())

    gc.freeze()  # what other tests left takes a second to look through
    try:
        before = graphs()
        compiled(model)(x)
        assert graphs() > before
        report = ladderize.last_report()
        torch._dynamo.reset()
        assert graphs() == before
    finally:
        gc.unfreeze()
    assert pickle.loads(pickle.dumps(report)) == report


# ---- data


def test_diff_and_network_say_the_same(model, x):
    report = ladderize.explain(model, x, options={"staleness": 2})
    diff = report.diff()
    assert [(r.block.index, r.before, r.after) for r in diff] == [
        (1, ("x1",), ("x0",)),
        (2, ("x2",), ("x0",)),
        (3, ("x3",), ("x1",)),
    ]
    assert str(diff).splitlines()[-3:] == [
        "@@ h3 · layer 3 · layers.3 @@",
        "-y3 = x3 + h3(x3)",
        "+y3 = x3 + h3(x1)",
    ]
    net = report.to_networkx()
    stale = {(read, block) for read, block, role in net.edges(data="stale") if role}
    assert stale == {("x0", "h1"), ("x0", "h2"), ("x1", "h3")}
    assert net.edges["x1", "h3"]["staleness"] == 2
    assert net.nodes["h3"]["kind"] == "MLP"
    skips = [edge[:2] for edge in net.edges(data="role") if edge[2] == "skip"]
    assert skips == [(f"x{i}", f"x{i + 1}") for i in range(4)]
    assert not ladderize.explain(model, x, options={"staleness": 0}).diff()


def test_json_holds_everything(model, x):
    report = ladderize.explain(model, x)
    held = json.loads(report.to_json())
    assert held["graphs"][0]["streams"][0]["blocks"][2]["reads_after"] == ["x1"]
    assert held.pop("num_blocks") == 4
    stale = [
        b["reads_before"] != b["reads_after"] for b in held["graphs"][0]["streams"][0]["blocks"]
    ]
    assert held.pop("num_stale") == sum(stale) == 3
    assert held.keys() == {field.name for field in dataclasses.fields(report)}


# ---- collectives


@pytest.fixture
def mesh():
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_the_models_own_collectives(mesh, x):
    class Parallel(Residual):
        def forward(self, x):
            x = self.embed(x)
            for layer in self.layers:
                x = x + all_reduce(layer(x), "sum", mesh)
            return all_gather_tensor(self.head(x), 0, mesh)

    report = ladderize.explain(Parallel(), x)
    found = [(c.op, c.block, c.is_inserted) for c in report.collectives]
    assert found == [
        *(("all_reduce", f"h{i}", False) for i in range(4)),
        ("all_gather_into_tensor", "", False),
    ]
    assert all("test_report.py:" in c.source for c in report.collectives)
    assert {c.group for c in report.collectives} == {mesh.get_group().group_name}
    assert {block.kind for block in report.blocks} == {"MLP"}


@pytest.mark.parametrize("has_backward", [True, False])
def test_collectives_of_sharding(mesh, model, x, has_backward):
    """Those of the backward are listed only if there is one."""
    with torch.set_grad_enabled(has_backward):
        report = ladderize.explain(model, x, options={"mesh": mesh})
    inserted = [(c.op, c.block) for c in report.collectives if c.is_inserted]
    assert [block for op, block in inserted if op == "all_reduce"] == ["h0", "h1", "h2", "h3"]
    assert [block for op, block in inserted if op == "all_reduce (backward)"] == (
        ["h0", "h1", "h2", "h3"] if has_backward else []
    )
    assert report.graphs[0].sharding.num_ranks == 2
    assert ("layers.0.up.weight", "sharded on dim 0 as 16") in report.graphs[0].sharding.placements
    assert "4 all_reduce on group" in str(report)


# ---- compilations


def test_last_report_is_what_explain_says(model, x):
    assert ladderize.last_report() is None
    compiled(model, blocks="last:2")(x)
    last = ladderize.last_report()
    assert last.graphs[0].outcome == "rewritten"
    assert last.blocks == ladderize.explain(model, x, options={"blocks": "last:2"}).blocks
    assert ladderize.last_report() is last, "explain compiles nothing"
    torch._dynamo.reset()
    assert ladderize.last_report() is None


def test_refused_compilations_leave_a_report(model, x):
    with pytest.raises(LadderError, match="3 blocks were expected"):
        compiled(model, expect_blocks=3)(x)
    assert ladderize.last_report().graphs[0].outcome == "refused"
    with pytest.warns(LadderWarning):
        compiled(model, expect_blocks=3, strict=False)(x)
    last = ladderize.last_report()
    assert last.graphs[0].outcome == "standard"
    assert "3 blocks were expected" in last.refused[0].summary
    assert len(last.blocks) == 4
    assert not last.diff()


def test_debug_dir_holds_the_report(model, x, tmp_path):
    compiled(model, debug_dir=tmp_path / "compiled")(x)
    last = ladderize.last_report()
    ladderize.explain(model, x, options={"debug_dir": tmp_path / "explained"})
    for name, reads in (("compiled", "read"), ("explained", "would read")):
        (folder,) = (tmp_path / name).glob("rank0/*")
        assert {"report.txt", "report.json"} <= {path.name for path in folder.iterdir()}
        assert f"4 blocks in 1 stream, 3 {reads} stale" in (folder / "report.txt").read_text()
        held = json.loads((folder / "report.json").read_text())
        assert len(held["graphs"][0]["streams"][0]["blocks"]) == 4
    assert json.loads((next((tmp_path / "compiled").glob("*/*/*.json"))).read_text()) == json.loads(
        last.to_json()
    )


@pytest.mark.deep
def test_torch_logs_and_trace(tmp_path):
    """TORCH_LOGS=+ladderize prints a line a pass; TORCH_TRACE holds the report for tlparse."""
    code = """
        import torch
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
            def forward(self, x):
                x = x.tanh()
                for layer in self.layers:
                    x = x + layer(x).relu()
                return x
        torch.compile(Net(), backend="ladderize", options={"lowering": "eager"})(torch.ones(2, 4))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "TORCH_LOGS": "+ladderize", "TORCH_TRACE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = [line for line in ran.stderr.splitlines() if "RerouteReads" in line]
    assert len(lines) == 1
    assert "2 edits" in lines[0]
    assert "DeferWaits" in ran.stderr
    (trace,) = tmp_path.iterdir()
    held = trace.read_text()
    assert '"name": "ladderize_report", "encoding": "string"' in held
    assert "3 blocks in 1 stream, 2 read stale; the ladder is compiled" in held
    assert '"name": "ladderize_report_data", "encoding": "json"' in held
