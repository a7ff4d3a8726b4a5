"""Vocabulary-parallel embeddings, heads and losses, against one device.

Language models on real gloo ranks, Inductor's code of them on one; small nets as all of their ranks
in lockstep.
"""

from functools import partial

import pytest
import torch
from helpers.language_models import FAMILIES, language_model
from helpers.ranks import mesh
from helpers.reads import HEAD
from helpers.sharded import Sharder
from torch import nn
from torch.nn import functional as F

import ladderize
from ladderize.backends.emitted import EventKind, find_disorder, find_races, read_events
from ladderize.frontends.rewrite import parameter_names
from ladderize.passes.runner import Log, run_pass
from ladderize.passes.shard import ShardBranches
from ladderize.sharding.placement import Replicate, Shard, take_local
from ladderize.sharding.plan import plan_sharding
from ladderize.streams.find import find_streams
from ladderize.testing import eager_ladder
from ladderize.testing.emitted_code import record_emitted_code

BLOCKS = ["blocks.*"]  # of the small nets below


def compiled(model, dynamic=False, **options):
    return torch.compile(
        model, backend="ladderize", fullgraph=True, dynamic=dynamic, options=options
    )


def whole(model, reads, *args, **kwargs):
    """What the unsharded ladder returns, without tracing it."""
    with eager_ladder(model, reads):
        return model(*args, **kwargs)


def inputs(length=6, labels=True):
    ids = torch.randint(64, (2, length), generator=torch.Generator().manual_seed(2))
    if not labels:
        return {"input_ids": ids}
    wanted = ids.roll(1, 0)
    wanted[0, :3] = -100  # ignored
    return {"input_ids": ids, "labels": wanted}


def sharded_and_whole(name, lowering="aot_eager", dynamic=False, labels=True):
    """Largest errors of loss, logits and every gradient; and the placements."""
    model = language_model(name, **({"num_hidden_layers": 1} if name == "bert" else {}))
    run = compiled(model, None if dynamic else False, mesh=mesh(), lowering=lowering)
    errors = {}
    for length in [6, 9] if dynamic else [6]:
        call = inputs(length, labels)
        if length == 6:
            for ids in call.values() if dynamic else ():
                torch._dynamo.mark_dynamic(ids, 1)
            found = run(**call)
            placements = sharding().placements
        else:
            with torch.compiler.set_stance("fail_on_recompile"):
                found = run(**call)
        expected = whole(model, HEAD[name], **call)
        for key in ("loss", "logits") if labels else ("logits",):
            errors[key] = max(errors.get(key, 0), distance(found[key], expected[key]))
        errors["gradients"] = gradient_errors(model, total(found), total(expected))
    return errors, placements


def sharding():
    """The sharding in the latest report."""
    return ladderize.last_report().graphs[-1].sharding


def total(output):
    """A scalar through all outputs."""
    weight = torch.linspace(-1, 1, output.logits.shape[-1])
    loss = output.get("loss")
    return (output.logits * weight).square().mean() + (0 if loss is None else loss)


def distance(a, b):
    return (a - b).abs().max().item()


def gradient_errors(model, found, expected):
    """The largest error of any gradient; every rank has all of each."""
    parameters = list(model.parameters())
    ours = torch.autograd.grad(found, parameters)
    theirs = torch.autograd.grad(expected, parameters)
    return max(distance(mine, full) for mine, full in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "bert" else [pytest.mark.deep]) for name in FAMILIES],
)
def test_two_ranks_equal_one(two_ranks, name):
    for errors, placements in two_ranks.run(sharded_and_whole, name):
        assert max(errors.values()) <= 1e-4, errors
        check_placements(name, placements)


def check_placements(name, placements):
    divided = dict(placements)
    for parameter in FAMILIES[name][2]:
        assert divided.pop(parameter).startswith("sharded on dim 0 as 64")
    assert all(".layer" in other or ".h." in other for other in divided)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["llama, tied", "gemma2"])
def test_four_ranks_equal_one(four_ranks, name):
    for errors, _ in four_ranks.run(sharded_and_whole, name, "eager"):
        assert max(errors.values()) <= 1e-4, errors


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "labels"),
    [("llama, tied", True), pytest.param("gpt2", False, marks=pytest.mark.deep)],
)
def test_dynamic_shapes(two_ranks, name, labels):
    for errors, placements in two_ranks.run(sharded_and_whole, name, "aot_eager", True, labels):
        assert max(errors.values()) <= 1e-4, errors
        check_placements(name, placements)


def letters(source):
    """Launches and waits in the order of the emitted code: `r` all-reduce, `g` all-gather."""
    short = {EventKind.LAUNCH: "l", EventKind.WAIT: "w"}
    return "".join(short.get(event.kind, "") for event in read_events(source).events)


@pytest.mark.deep
@pytest.mark.usefixtures("first_of_two")
def test_inductor_hides_what_it_hid_before():
    """The embedding's reduction at once, the branches' each behind the next, then the head's."""
    run = compiled(language_model("llama, tied"), mesh=mesh(), verify="code")
    with record_emitted_code() as sources:
        total(run(**inputs())).backward()
    forward, backward = sources
    # of the loss, highest logits and sums; of the logits, a gather
    assert letters(forward) == "lw" + "l" + "lw" * 3 + "w" + "lw" * 3
    assert letters(backward).startswith("lw")  # into the head, then as without
    assert letters(backward).count("l") == 1 + 4
    for source in sources:
        assert not find_races(read_events(source))
        assert not find_disorder(read_events(source))


@pytest.mark.deep
def test_inductor_computes_the_same(two_ranks):
    for errors, _ in two_ranks.run(sharded_and_whole, "llama, tied", "inductor"):
        assert max(errors.values()) <= 1e-4, errors


# ---- small nets, for what the models above do not have


class Small(nn.Module):
    """A table, two blocks, a tied head, and what `finish` makes of the logits and the ids."""

    def __init__(self, finish, words=24, width=8, padding_idx=None, untied=False, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(words, width, padding_idx)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, words, bias)
        if not untied:
            self.head.weight = self.table.weight
        self.finish = finish

    def forward(self, ids):
        x = self.table(ids)
        for block in self.blocks:
            x = x + block(x)
        return self.finish(self.head(x), ids)


def loss(logits, ids, **options):
    """The next word's, the words below 3 ignored."""
    target = ids.roll(-1, 1)
    target = target.masked_fill(target < 3, options.get("ignore_index", -100))
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), **options)


def by_positions(logits, ids):
    return F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")


def in_two_steps(logits, ids):
    return F.nll_loss(F.log_softmax(logits, -1).flatten(0, 1), ids.flatten())


def best(logits, ids):
    return logits.softmax(-1).topk(3).values + ids.sum()


def shifted(logits, ids):
    """Added to the logits: one number for each word, and a part that depends on it."""
    bonus = torch.arange(logits.shape[-1]) / 7
    return (logits[:, -1] + bonus).tanh() * ids[:, :1]


FINISHES = {  # what is returned -> all-gathers, vocabulary-parallel losses
    "mean": (loss, 0, 1),
    "sum": (partial(loss, reduction="sum"), 0, 1),
    "none": (partial(loss, reduction="none"), 0, 1),
    "ignored": (partial(loss, ignore_index=5), 0, 1),
    "by positions": (by_positions, 0, 1),
    "smoothed": (partial(loss, label_smoothing=0.1), 1, 0),
    "weighted": (partial(loss, weight=torch.arange(24.0)), 1, 0),
    "in two steps": (in_two_steps, 1, 0),
    "best": (best, 1, 0),
    "shifted": (shifted, 1, 0),
    "both": (lambda logits, ids: (logits.float(), loss(logits, ids)), 1, 1),
}


# ---- structure


def plan_of(model, *args, num_ranks=2, execute=False, **kwargs):
    sharder = Sharder(num_ranks, execute)
    torch.compile(model, backend=sharder, fullgraph=True, dynamic=False)(*args, **kwargs)
    return sharder


IDS = torch.arange(18).reshape(3, 6)


@pytest.mark.parametrize("name", FINISHES)
def test_whole_logits_are_gathered_only_where_needed(name):
    """And values and gradients are those of one device."""
    made, gathers, losses = FINISHES[name]
    model = Small(made)
    sharder = plan_of(model, IDS, execute=True)
    check_ranks(sharder, model)
    targets = sharder.targets()
    assert targets.count("ladderize.gather.default") == gathers
    assert targets.count("ladderize.vocab_cross_entropy.default") == losses
    assert targets.count("ladderize.embed_rows.default") == 1
    assert targets.count("ladderize.reduce.default") == 3


@pytest.mark.parametrize(
    "options", [{"padding_idx": 10}, {"untied": True, "bias": True}, {"untied": True}]
)
def test_tables_and_heads(options):
    model = Small(FINISHES["both"][0], **options)
    sharder = plan_of(model, IDS, execute=True)
    check_ranks(sharder, model)
    placements = sharder.plan.placements
    assert ("head.weight" in placements) == ("untied" in options)
    assert ("head.bias" in placements) == ("bias" in options)


def check_ranks(sharder, model):
    expected = model(IDS)
    expected = (expected,) if isinstance(expected, torch.Tensor) else expected
    for found in sharder.outputs:
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
    for outputs in (expected, [value for found in sharder.outputs for value in found]):
        sum(value.sin().mean() for value in outputs).backward()
    full = dict(model.named_parameters(remove_duplicate=False))
    for rank, leaves in enumerate(sharder.leaves):
        assert len(leaves) == len(list(model.parameters()))
        for name, leaf in leaves.items():
            placement = sharder.plan.placements.get(name, Replicate())
            wanted = take_local(full[name].grad, placement, rank, 2)
            torch.testing.assert_close(leaf.grad, wanted, atol=1e-4, rtol=0)


def test_the_rank_enters_by_one_input():
    sharder = plan_of(Small(FINISHES["both"][0]), IDS, num_ranks=4)
    (index,) = sharder.plan.index_inputs
    assert index.rows == ((0,), (6,), (12,), (18,))
    assert sharder.plan.num_reductions == 2  # of the branches
    assert sharder.plan.placements["table.weight"] == Shard(0, (24,))


def test_an_exported_program_is_divided_alike():
    """torch.export checks types along the way, which takes no whole logits."""
    program = torch.export.export(Small(FINISHES["both"][0]), (IDS,))
    gm, names = program.graph_module, parameter_names(program, program.graph_module)
    blocks = [block for stream in find_streams(gm, names) for block in stream.blocks]
    plan = plan_sharding(gm, blocks, names, 2)
    found = plan.vocabulary
    assert [len(edits) for edits in (found.lookups, found.losses, found.gathers)] == [1, 1, 1]
    run_pass(gm, ShardBranches(plan, "group"), Log())
    assert "torch.ops.ladderize.vocab_cross_entropy" in gm.code


def test_only_the_vocabulary_is_divided():
    """GPT-2's positions are not words, although they are inputs; BERT's tables are tested above."""
    positions = torch.arange(6).expand(2, 6)
    model = language_model("gpt2", max_position_embeddings=40, n_layer=1)
    plan = plan_of(model, position_ids=positions, **inputs(labels=False)).plan
    outside = {name for name in plan.placements if ".h." not in name}
    assert outside == FAMILIES["gpt2"][2]


class OtherUse(Small):
    def forward(self, ids):
        return super().forward(ids) + self.table.weight.mean()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: Small(loss, words=25), "25 words cannot be divided over 2 ranks"),
        (lambda: OtherUse(loss), "is also used by aten.mean"),
        (lambda: Small(loss, padding_idx=None).requires_grad_(False), ""),
    ],
)
def test_what_stays_whole_is_listed(model, reason):
    plan = plan_of(model(), IDS).plan
    whole = [each for each in plan.whole if "table.weight" in each.parameters]
    assert bool(whole) == bool(reason)
    if reason:
        assert reason in str(whole[0])
        assert whole[0].num_bytes > 0
        assert "table.weight" not in plan.placements
        assert any(reason in line for line in plan.describe() if line.startswith("kept whole: "))
    assert plan.num_reductions == 2


def whole_vocabulary():
    model = Small(FINISHES["both"][0])
    options = {"mesh": mesh(), "lowering": "eager", "shard_vocabulary": False}
    found = compiled(model, **options)(IDS)[0]
    report = sharding()
    expected = whole(model, BLOCKS, IDS)[0]
    return distance(found, expected), report


def test_the_vocabulary_can_be_left_whole(two_ranks):
    for error, report in two_ranks.run(whole_vocabulary):
        assert error <= 1e-4
        assert len(report.placements) == 6
        assert all(name.startswith("blocks.") for name, _ in report.placements)
