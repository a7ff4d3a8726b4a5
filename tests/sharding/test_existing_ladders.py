"""Programs that are already ladders are sharded like the models that they were made from."""

import warnings
from functools import cache

import pytest
import torch
from helpers.graphs import Residual
from helpers.lockstep import ShardedProgram
from helpers.ranks import Ranks
from helpers.sharded import MODELS
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.export import export
from typer.testing import CliRunner

import ladderize
from ladderize import LadderError, LadderWarning
from ladderize.frontends.rewrite import copy_of, ladder_program, parameter_names
from ladderize.graph import ops
from ladderize.passes.before_autograd import standardize
from ladderize.streams.find import find_streams
from ladderize.tools.cli import app

TOLERANCE = 1e-4


class ParallelHalves(nn.Module):
    """`(x + attention(x)) + mlp(x)`: one block, and in a ladder two sums of one anchor."""

    def __init__(self, width: int = 8, layers: int = 4) -> None:
        super().__init__()
        halves = [nn.Sequential(nn.Linear(width, 16), nn.Linear(16, width)) for _ in range(8)]
        self.halves = nn.ModuleList(halves[: 2 * layers])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for first, second in zip(self.halves[::2], self.halves[1::2], strict=True):
            x = x + first(x) + second(x)
        return x


class SumsWithin(ParallelHalves):
    """In each branch a sum around an attention without weights, divided by heads like the rest."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for up, down in self.halves[:4]:
            heads = up(x).unflatten(-1, (4, 4)).transpose(1, 2)
            heads = heads + nn.functional.scaled_dot_product_attention(heads, heads, heads)
            x = x + down(heads.transpose(1, 2).flatten(2))
        return x


@cache
def program_of(name):
    torch.manual_seed(0)
    if name in OWN:
        return export(OWN[name](), (torch.randn(2, 6, 8),))
    return export(MODELS[name](layers=3), (torch.arange(12).reshape(2, 6),))


OWN = {"parallel halves": ParallelHalves, "sums within": SumsWithin}
CASES = [
    ("llama", {}),
    ("llama", {"staleness": 2}),
    ("llama", {"layers": "last:2"}),
    ("llama", {"layers": "0:2"}),
    ("gpt2", {}),
    ("bert", {}),
    ("t5", {}),
    ("neox", {}),
    ("parallel halves", {}),
    ("sums within", {}),
]
EVERY_RUN = [*CASES[:3], ("bert", {}), *CASES[-2:]]


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(*case, marks=[] if case in EVERY_RUN else [pytest.mark.deep]) for case in CASES],
)
def test_as_the_standard_net(name, options):
    program = program_of(name)
    at_once = ShardedProgram(program, 2, **options)
    ladder = ladderize.rewrite(program, **options)
    sharded = ShardedProgram(ladder, 2)
    assert sharded.plan.whole == ()
    assert sharded.plan.placements == at_once.plan.placements
    assert sharded.plan.num_reductions == at_once.plan.num_reductions
    args, kwargs = ladder.example_inputs
    expected = torch.utils._pytree.tree_leaves(ladder.module()(*args, **kwargs))
    for found in sharded(*args, **kwargs):
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "read"), [("gpt2", "add"), ("bert", "layer_norm")])
def test_stale_blocks_read_the_stream_as_others_do(name, read):
    ladder = ladderize.rewrite(program_of(name))
    gm = copy_of(ladder)
    names = parameter_names(ladder, gm)
    standardize(gm, names)
    (stream,) = find_streams(gm, names)
    assert len(stream.stale_blocks) == 5
    anchors = [stream.blocks[0].anchor, *(block.anchor for block in stream.stale_blocks)]
    assert len(set(anchors)) == 5 and anchors[0] is anchors[1]  # the first two read one value
    assert {ops.op_name(anchor) for anchor in anchors[2:]} == {read}
    branches = [node for block in stream.stale_blocks for node in block.branch]
    assert len(branches) == len(set(branches))


def test_what_does_not_divide_is_told_of_stale_blocks_too():
    ladder = ladderize.rewrite(export(MODELS["llama"](heads=3, kv=3), (torch.arange(6)[None],)))
    with pytest.warns(LadderWarning, match="3 heads") as caught:
        sharded = ShardedProgram(ladder, 2)
    assert len(sharded.plan.whole) == 2
    assert "layers.{0-1}.self_attn" in str(caught[0].message)


def test_a_second_rewrite_says_that_it_changes_nothing():
    ladder = ladderize.rewrite(program_of("llama"))
    with pytest.warns(LadderWarning, match="already a ladder, with 5 stale"):
        again, _ = ladder_program(ladder, ladderize.LadderConfig())
    assert again.describe() == "0 of 1 blocks read stale, 5 more did before"
    assert "its reads are left unchanged: 5 blocks" in str(ladderize.last_report())


def parallelized(path):
    """The error of the shard of a laddered program, and how many all-reduces it takes."""
    program = torch.export.load(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shard = ladderize.parallelize(program, init_device_mesh("cpu", (2,)))
    ids = torch.arange(12).reshape(2, 6)
    error = (shard(ids)[0] - program.module()(ids)[0]).abs().max().item()
    report = ladderize.last_report().graphs[0]
    inside = [c.block for c in report.collectives if c.op == "all_reduce" and c.block]
    said = [str(w.message) for w in caught if issubclass(w.category, LadderWarning)]
    return error, inside, said


def test_two_ranks(two_ranks: Ranks, tmp_path):
    path = tmp_path / "ladder.pt2"
    torch.export.save(ladderize.rewrite(program_of("llama")), path)
    for error, blocks, said in two_ranks.run(parallelized, path):
        assert error <= TOLERANCE
        assert blocks == ["h0", *(f"stale{i}" for i in range(5))]
        assert len(said) == 1 and "This model is already a ladder, with 5 stale blocks" in said[0]


def compiled_by_hand():
    """The error of a ladder in plain Python that is compiled with a mesh, and its all-reduces."""
    model = Residual(4)
    options = {"mesh": init_device_mesh("cpu", (2,)), "lowering": "eager"}
    run = torch.compile(model.ladder, backend="ladderize", fullgraph=True, options=options)
    x = torch.randn(3, 8)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = (run(x) - model.ladder(x)).abs().max().item()
    collectives = ladderize.last_report().graphs[0].collectives
    said = [str(w.message) for w in caught if issubclass(w.category, LadderWarning)]
    return error, sum(c.op == "all_reduce" for c in collectives), said


def test_a_ladder_written_by_hand_and_a_mesh(two_ranks: Ranks):
    for error, all_reduces, said in two_ranks.run(compiled_by_hand):
        assert error <= TOLERANCE
        assert all_reduces == 4
        assert len(said) == 1 and "This model is already a ladder, with 3 stale blocks" in said[0]


def test_from_the_command_line(tmp_path):
    run, shards = CliRunner().invoke, tmp_path / "shards"
    torch.export.save(program_of("sums within"), tmp_path / "net.pt2")
    ladder = str(tmp_path / "ladder.pt2")
    assert run(app, ["rewrite", str(tmp_path / "net.pt2"), "--out", ladder]).exit_code == 0
    said = run(app, ["rewrite", ladder, "--out", str(shards), "--tp", "2"])
    assert said.exit_code == 0, said.output
    assert "kept whole" not in said.output
    for original in ("net.pt2", "ladder.pt2"):
        said = run(app, ["verify", str(tmp_path / original), str(shards)])
        assert said.exit_code == 0, said.output


def test_a_ladder_of_which_nothing_divides_is_refused():
    ladder = ladderize.rewrite(export(MODELS["llama"](heads=3, kv=3), (torch.arange(6)[None],)))
    with pytest.raises(LadderError, match="No branch can be sharded over 5 ranks"):
        ShardedProgram(ladder, 5)
