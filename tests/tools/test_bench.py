"""`ladderize bench`: two real ranks on an emulated link, and the results."""

import json
import pickle
import statistics
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from helpers.forked_launch import forked_launch
from moves import read
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from ladderize.config.hardware import Link, link_of
from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.rewrite import rewrite
from ladderize.frontends.sharded.localize import localize
from ladderize.frontends.sharded.tracing import export_program
from ladderize.testing.verify.locate import relative_error
from ladderize.tools.bench.bench_settings import VARIANTS, Case, Settings, Share, choose_links
from ladderize.tools.bench.chart import draw
from ladderize.tools.bench.paired import paired_ratio
from ladderize.tools.bench.rank import Compiled, Measured, stages
from ladderize.tools.bench.record import Results
from ladderize.tools.bench.result_tables import show
from ladderize.tools.bench.rows import exposed_at_least, rows_of
from ladderize.tools.bench.timing import Samples
from ladderize.tools.bench.variants import drop_collectives
from ladderize.tools.cli import app
from ladderize.tools.emulation import Exposure

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module", autouse=True)
def ranks_are_forked():
    with forked_launch():
        yield


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(LLAMA))
    return f"hf:{path}"


MEASURED = (*VARIANTS, "desync:2")


def run(*args):
    return CliRunner().invoke(app, ["bench", *map(str, args)])


# ---- on two ranks


@pytest.fixture(scope="module")
def measured(llama, tmp_path_factory, request):
    """Results on two links, under --deep of both phases, and the pictures of them."""
    folder = tmp_path_factory.mktemp("bench")
    phases = ("prefill", "decode") if request.config.getoption("--deep") else ("prefill",)
    done = run(
        *(llama, "--ranks", 2, "--lowering", "eager", "--alpha-us", "0,20000", "--batch", 2),
        *("--length", 16, "--phase", ",".join(phases), "--repeats", 3, "--warmup", 1),
        *("--variants", ",".join(MEASURED)),
        *("--out", folder / "results.json", "--plot", folder / "results.png", "--debug"),
    )
    assert done.exit_code == 0, done.output
    results = read(folder / "results.json")
    return SimpleNamespace(output=done.stdout, folder=folder, results=results, phases=phases)


def test_every_variant_is_measured_in_each_phase_on_every_link(measured):
    keys = {(r.key["phase"], r.key["link"], r.key["variant"]) for r in measured.results.rows}
    links = ("0 µs", "20000 µs")
    assert keys == {(p, link, v) for p in measured.phases for link in links for v in MEASURED}


def test_each_computes_what_it_says(measured):
    for row in measured.results.rows:
        error = row.values["error"]
        if row.key["variant"] in ("bound", "desync:2"):
            assert error is None
        else:
            assert error < 1e-5, row.name


def test_the_ladder_exposes_less_than_the_standard_net(measured):
    """Times of the link alone: what takes 20 ms there takes 0.1 ms here."""
    slow = [row for row in measured.results.rows if row.key["link"] == "20000 µs"]
    for phase in measured.phases:
        of = {r.key["variant"]: r.values for r in slow if r.key["phase"] == phase}
        assert of["ladder"]["exposed_s"] < of["standard"]["exposed_s"]
        assert of["parallel"]["communicating_s"] < of["standard"]["communicating_s"]
        assert of["desync:2"]["communicating_s"] < of["standard"]["communicating_s"]
        assert of["bound"].get("exposed_s") is None
        assert of["bound"]["standard_ratio"] < 0.5
        assert of["free"]["standard_ratio"] < 0.5 and "exposed_s" not in of["free"]


def test_rows_hold_what_users_compare(measured):
    row = next(r for r in measured.results.rows if r.key["variant"] == "ladder")
    assert row.values["tokens_per_s"] == pytest.approx(2 * 16 / row.values["median_s"])
    assert row.values["standard_ratio"] > 0
    assert row.values["peak_bytes"] > 0
    assert row.values["compile_s"] > row.values["passes_s"] > 0
    assert any(name.startswith("passes_") and name != "passes_s" for name in row.values)


def test_the_tables_name_case_link_and_variants(measured):
    assert "prefill, batch 2, length 16, link: 20000 µs" in measured.output
    assert ("decode, batch 2, length 16" in measured.output) == ("decode" in measured.phases)
    first = [line.split()[0] for line in measured.output.splitlines() if line.strip()]
    # A phase: two of times and of communication, one of its kinds on the slow link, one of costs.
    num_tables = dict.fromkeys(VARIANTS, 6) | {"free": 4, "bound": 3}
    counted = {name: first.count(name) / len(measured.phases) for name in VARIANTS}
    assert counted == num_tables


def test_the_picture_is_a_picture(measured):
    assert (measured.folder / "results.png").read_bytes().startswith(b"\x89PNG")


# ---- one rank


def test_without_a_mesh_there_is_nothing_to_send(llama):
    how = ("--lowering", "eager", "--phase", "decode", "--length", 8, "--repeats", 1, "--json")
    done = run(llama, "--ranks", 1, *how)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [row["key"]["variant"] for row in rows] == ["standard", "written", "ladder", "parallel"]
    assert all(row["values"]["error"] < 1e-5 for row in rows)
    assert all("exposed_s" not in row["values"] for row in rows)


@pytest.mark.deep
def test_inductor_is_watched_while_it_compiles(llama):
    done = run(
        *(llama, "--ranks", 1, "--length", 8, "--repeats", 1, "--variants", "ladder"),
        *("--phase", "prefill", "--json"),
    )
    assert done.exit_code == 0, done.output
    for row in json.loads(done.stdout)["rows"]:
        assert row["values"]["races"] == 0
        assert row["values"]["error"] < 1e-5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).relu()
        return x


def test_a_program_is_measured_with_its_own_inputs(tmp_path):
    program = torch.export.export(Net().eval(), (torch.randn(2, 8),))
    torch.export.save(program, tmp_path / "net.pt2")
    done = run(tmp_path / "net.pt2", "--ranks", 1, "--lowering", "eager", "--json", "--repeats", 1)
    assert done.exit_code == 0, done.output
    assert {row["key"]["phase"] for row in json.loads(done.stdout)["rows"]} == {"forward"}


@pytest.mark.deep
def test_a_net_without_parallel_blocks_is_measured_without(tmp_path):
    """Post-norm: its blocks cannot run in parallel."""
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    config.architectures = ["BertModel"]
    config.save_pretrained(tmp_path)
    args = (f"hf:{tmp_path}", "--ranks", 1, "--lowering", "eager", "--length", 8, "--repeats", 1)
    done = run(*args, "--json")
    assert done.exit_code == 0, done.output
    assert "skipping parallel" in done.stderr
    variants = [row["key"]["variant"] for row in json.loads(done.stdout)["rows"]]
    assert variants == ["standard", "written", "ladder"]
    refused = run(*args, "--variants", "standard,parallel")
    assert refused.exit_code == 1
    assert "No two branches of a layer are summands of one sum" in refused.stderr


# ---- refusals


def test_what_cannot_be_measured_is_refused_before_ranks_are_started(llama, tmp_path):
    (tmp_path / "there.json").write_text("{}")
    for args, reason in (
        ((llama, "--variants", "standard,turbo"), "there is no variant 'turbo'"),
        ((llama, "--variants", "standard,desync:1"), "there is no variant 'desync:1'"),
        ((llama, "--ranks", 1, "--variants", "standard,desync:2"), "one rank has one stream"),
        (
            (llama, "--variants", "bound,free"),
            "'free' is a run of 'ladder'",
        ),
        ((llama, "--phase", "train"), "there is no phase 'train'"),
        ((llama, "--phase", "training"), "the phase 'training' needs a model with its inputs"),
        ((llama, "--share", "0.3", "--variants", "ladder"), "is a fraction of the step of 'bound'"),
        ((llama, "--link", "string"), "no link called 'string'"),
        ((llama, "--bandwidth", "3"), "give --alpha-us too"),
        ((llama, "--out", tmp_path / "there.json"), "exists already"),
        ((llama, "--plot", tmp_path / "a.html"), "is not a picture"),
        ((llama, "--device", "tpu"), "there is no device 'tpu'"),
        ((llama, "--device", "cuda", "--link", "wifi"), "links are emulated on the CPU only"),
        ((llama, "--ranks", "1", "--share", "0.3"), "one rank has no link"),
        ((tmp_path / "there.json", "--phase", "decode"), "the phase 'decode' needs an hf: model"),
    ):
        done = run(*args)
        assert done.exit_code == 1, args
        assert reason in done.stderr, done.stderr
        assert "start" not in done.stderr


def test_a_ladder_has_no_read_left_to_move(tmp_path):
    ladder = rewrite(torch.export.export(Net().eval(), (torch.randn(2, 8),)))
    torch.export.save(ladder, tmp_path / "ladder.pt2")
    done = run(tmp_path / "ladder.pt2", "--ranks", 1, "--lowering", "eager")
    assert done.exit_code == 1
    assert "has no block that can be converted" in done.stderr


@pytest.mark.parametrize("text", ["four", "0", "-1", "1,,x"])
def test_a_batch_is_a_number_above_zero(llama, text):
    done = run(llama, "--batch", text)
    assert done.exit_code == 2
    assert "not a list of numbers" in done.stderr


def test_a_model_that_does_not_generate_is_not_decoded(tmp_path):
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.architectures = ["BertModel"]
    config.save_pretrained(tmp_path)
    done = run(f"hf:{tmp_path}", "--ranks", 1, "--phase", "decode", "--lowering", "eager")
    assert done.exit_code == 1
    assert "BertModel cannot generate" in done.stderr


def test_a_rank_that_fails_ends_the_others(tmp_path, monkeypatch):
    (tmp_path / "lost_nets.py").write_text("def net():\n    raise OSError('no disk')\n")
    monkeypatch.chdir(tmp_path)
    done = run("lost_nets:net", "--ranks", 2, "--lowering", "eager")
    assert done.exit_code == 1
    assert "lost_nets:net could not be called" in done.stderr and "no disk" in done.stderr


# ---- the variants


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parallel_blocks_share_one_reduction(dtype):
    fields = {k: v for k, v in LLAMA.items() if k not in ("model_type", "architectures")}
    config = transformers.LlamaConfig(**fields, use_cache=False)
    model = transformers.LlamaForCausalLM(config).eval().to(dtype)
    ids = torch.randint(0, 64, (2, 8))
    exported = export_program(model, (ids,), {}, None)
    program = rewrite(exported, variant="parallel")
    x = model.model.embed_tokens(ids)
    rotary = model.model.rotary_emb(x, torch.arange(8)[None])
    for layer in model.model.layers:
        attended = layer.self_attn(
            layer.input_layernorm(x), position_embeddings=rotary, attention_mask=None
        )[0]
        x = x + attended + layer.mlp(layer.post_attention_layernorm(x))
    expected = model.lm_head(model.model.norm(x))
    torch.testing.assert_close(program.module()(ids).logits, expected)
    local = localize(exported, 2, LadderConfig(variant="parallel", shard_vocabulary=False))
    reduces = [
        n for n in local.program.graph.nodes if n.target is torch.ops.ladderize.reduce.default
    ]
    assert len(reduces) == 2
    assert local.bytes_per_rank < 0.75 * local.bytes_in_all  # the MLP is divided too


def test_the_bound_has_no_collectives_left():
    fields = {k: v for k, v in LLAMA.items() if k not in ("model_type", "architectures")}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**fields, use_cache=False)
    ).eval()
    program = export_program(model, (torch.zeros(1, 8, dtype=torch.int64),), {}, None)
    gm = localize(program, 2, LadderConfig(staleness=0)).program.graph_module
    names = {str(node.target) for node in gm.graph.nodes}
    assert {"ladderize.gather.default", "ladderize.reduce.default"} <= names
    drop_collectives(gm, 2)
    left = {str(node.target) for node in gm.graph.nodes}
    assert not left & {f"ladderize.{op}.default" for op in ("copy", "gather", "reduce", "wait")}


# ---- what is made of it


def test_links_are_named_made_or_shares_of_a_block():
    found = choose_links(["nvlink-8"], [0.3], [2e-6], 5e9, ranks=4)
    assert found == (link_of("nvlink-8"), Share(0.3), Link("2 µs", 4, 2e-6, 5e9))


def test_stages_come_in_the_order_of_the_work():
    settings = Settings("hf:x", batches=(1, 2), variants=("standard", "bound"))
    assert list(stages(settings)) == [
        "start",
        *(
            f"prefill {batch} x 128: {part}"
            for batch in (1, 2)
            for part in ("trace", "standard", "bound", "measure")
        ),
    ]


@pytest.mark.parametrize(
    ("flops", "seconds", "each", "exposed"),
    [
        ([1], 1.0, 1.0, 1.0),  # nothing to hide behind
        ([1, 1, 1, 1], 4.0, 0.5, 0.5),  # half a block each: all but the last
        ([1, 1, 1], 3.0, 1.0, 1.0),  # as long as a block: still all but the last
        ([1, 1, 1], 3.0, 2.0, 4.0),  # AR0 1..3, h2 waits 1; AR1 3..5, AR2 5..7 behind h2 3..4
        ([3, 1], 4.0, 1.0, 1.0),  # AR0 3..4 behind h1; AR1 4..5
    ],
)
def test_what_no_order_of_a_ladder_hides(flops, seconds, each, exposed):
    blocks = [SimpleNamespace(flops=n) for n in flops]
    reduces = [each] * len(flops)
    assert exposed_at_least(blocks, seconds, reduces) == pytest.approx(exposed)


def made(variant, seconds, exposed=(), error=None, races=0):
    compiled = Compiled(2.0, {"A": 0.5}, races, 10)
    samples = Samples(list(seconds), list(exposed), [0.1] * len(exposed), error=error)
    return Measured(Case("decode", 4, 16), "slow", None, variant, samples, compiled, ())


def test_a_step_is_as_slow_as_its_slowest_rank():
    fast = [made("standard", [1.0, 2.0, 3.0], [0.05] * 3), made("ladder", [1.0] * 3, [0.0] * 3)]
    slow = [made("standard", [2.0, 1.0, 4.0], [0.06] * 3), made("ladder", [1.5] * 3, [0.02] * 3)]
    standard, ladder = rows_of([fast, slow])
    assert standard.values["median_s"] == statistics.median([2.0, 2.0, 4.0])
    assert ladder.values["standard_ratio"] == 0.75
    assert ladder.values["tokens_per_s"] == 4 / 1.5
    assert ladder.values["exposed_s"] == 0.02
    assert ladder.values["hidden_fraction"] == pytest.approx(0.8)
    assert ladder.values["passes_A_s"] == 0.5


def with_kinds(measured, *seconds):
    """Each repeat: exposed seconds of all-to-alls that take 0.1 s, next to an all-reduce."""
    repeats = [
        {"all_reduce": Exposure(1, 0.2, 0.2, 0.0, 0), "all_to_all": Exposure(1, 0.1, each, 0.0, 0)}
        for each in seconds
    ]
    return replace(measured, samples=replace(measured.samples, kinds=repeats))


def test_each_kind_of_collective_is_told():
    one = made("standard", [1.0] * 3, [0.3] * 3)
    rows = rows_of([[with_kinds(one, 0.01, 0.02, 0.03)], [with_kinds(one, 0.05, 0.04, 0.09)]])
    values = rows[0].values
    assert (values["exposed_all_to_all_s"], values["communicating_all_to_all_s"]) == (0.05, 0.1)
    assert values["hidden_all_to_all_fraction"] == pytest.approx(0.5)
    assert values["hidden_all_reduce_fraction"] == 0
    with (console := Console(width=200)).capture() as shown:
        show(console, rows)
    assert "all_to_all exposed ms" in shown.get()
    rows[0].values.pop("communicating_all_reduce_s")
    with console.capture() as shown:
        show(console, rows)
    assert "all_to_all exposed ms" not in shown.get()  # the table of all says so already


def test_the_ladder_is_held_against_itself_on_a_free_link():
    ladder, free = made("ladder", [1.1] * 6, [0.02] * 6), made("free", [1.0] * 6, [0.0] * 6)
    found, baseline = rows_of([[ladder, free]])
    assert found.values["free_ratio"] == pytest.approx(1.1)
    assert "hidden_fraction" in found.values and "hidden_fraction" not in baseline.values


def test_variants_are_compared_within_a_repeat():
    # The machine is twice as slow in the second half; the ladder takes 1.1 of the bound in both.
    bound = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    ladder = [1.1, 1.1, 1.1, 2.2, 2.2, 9.0]
    found, _ = rows_of([[made("ladder", ladder), made("bound", bound)]])
    assert found.values["bound_ratio"] == pytest.approx(1.1)
    assert found.values["bound_ratio_low"] == pytest.approx(1.1)
    assert found.values["bound_ratio_high"] == pytest.approx(4.5)


@pytest.mark.parametrize(("num", "outside"), [(5, None), (6, 0), (9, 1), (25, 7), (80, 30)])
def test_the_ends_of_an_interval_are_those_of_the_sign_test(num, outside):
    # The tables of the sign test at 5 %, two-sided: one value less than its critical number.
    found = paired_ratio([float(i) for i in range(num)], [1.0] * num)
    assert found.ends == (None if outside is None else (outside, num - 1 - outside))


def test_the_worst_rank_tells_errors_and_races():
    rows = rows_of([[made("written", [1.0], error=1e-7)], [made("written", [1.0], (), 0.5, 2)]])
    assert rows[0].values["error"] == 0.5
    assert rows[0].values["races"] == 2


def test_a_refusal_comes_from_a_rank_whole():
    error = LadderError("Not this:", [Blocker("a", "x.py:1"), Blocker("b")], "do that")
    found = pickle.loads(pickle.dumps(error))
    assert (found.summary, found.blockers, found.cure) == (
        error.summary,
        error.blockers,
        error.cure,
    )
    assert str(found) == str(error)


def test_no_number_is_an_infinite_error():
    expected = torch.tensor([1.0, 2.0])
    assert relative_error(torch.tensor([1.0, float("nan")]), expected) == float("inf")
    assert relative_error(torch.tensor([1.0, 3.0]), expected) == 0.5


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_results_without_a_sweep_are_drawn_too(kind, tmp_path):
    rows = rows_of([[made("standard", [1.0], [0.1]), made("ladder", [0.5], [0.0])]])
    draw(Results("ladderize bench", rows), tmp_path / f"a.{kind}")
    assert (tmp_path / f"a.{kind}").stat().st_size > 1000


def test_drawing_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    rows = rows_of([[made("standard", [1.0])]])
    with pytest.raises(LadderError, match="needs matplotlib"):
        draw(Results("ladderize bench", rows), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
