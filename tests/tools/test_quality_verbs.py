"""`ladderize sensitivity`, `evaluate`, `plan --sensitivity`: from folders to tables and files."""

import json
import math
import sys

import pytest
import torch
import transformers
from helpers.language_models import language_model
from helpers.word_tokenizers import chain_text, word_tokenizer
from test_cli import FACTORY, run

from ladderize.config.block_plan import BlockPlan, read_block_plan
from ladderize.quality.evaluation import evaluate
from ladderize.testing import eager_ladder
from ladderize.tools.cli.running import console
from ladderize.tools.quality.evaluation_tables import show_tasks
from ladderize.tools.quality.texts_of_model import batches_of

SIZES = ("--tokens", 64, "--length", 16, "--batch", 2)
FEW = ("--width", 1, "--share", "0.5,1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A standard model and its text; a ladder with other weights, which says so."""
    place = tmp_path_factory.mktemp("quality")
    model = language_model("llama")
    model.save_pretrained(place / "standard")
    with torch.no_grad():
        model.lm_head.weight *= 1.5
    model.config.ladder = {"blocks": [2, 3], "staleness": 1, "version": 1}
    model.save_pretrained(place / "ladder")
    for name in ("standard", "ladder"):
        word_tokenizer().save_pretrained(place / name)
    (place / "text.txt").write_text(chain_text(200))
    return place


@pytest.fixture(scope="module")
def measured(folders):
    """What `sensitivity` printed, and the plan that it wrote."""
    out, plot = folders / "plan.json", folders / "plan.png"
    how = (*SIZES, *FEW, "--out", out, "--plot", plot)
    done = run("sensitivity", folders / "standard", "--text", folders / "text.txt", *how)
    assert done.exit_code == 0, done.output
    return done, read_block_plan(out)


def refused(*args):
    """The one line that says why."""
    done = run(*args)
    assert done.exit_code == 1 and not done.stdout, done.output
    assert done.stderr.count("\n") == 1
    return done.stderr


# ---- sensitivity


def test_sensitivity_writes_what_it_shows(folders, measured):
    done, plan = measured
    assert plan.tokens == 64 and [block.layer for block in plan.blocks] == [0, 0, 1, 1]
    assert {len(found.blocks) for found in plan.sets} == {1, 2, 3}
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"LlamaForCausalLM {folders / 'standard'}: 64 tokens, loss of the")
    (block,) = (line.split() for line in lines if "layers.1.self_attn (attention)" in line)
    assert block[2:4] == ["2", f"{plan.blocks[2].kl:.3f}"]
    longest = max(plan.blocks, key=lambda each: each.kl or 0)
    (bars,) = (line for line in lines if f"{longest.module} (" in line)
    assert bars.count("█") == 24
    (best,) = (line.split() for line in lines if line.startswith("best for 50 %"))
    assert float(best[6]) == pytest.approx(plan.best(0.5).kl, abs=1e-3)
    assert {"all", "last:50%", "MLP only"} <= plan.references.keys()
    (last,) = (line.split() for line in lines if line.startswith("last:50%"))
    assert last[1:4] == ["67", "%", f"{plan.references['last:50%'].kl:.3f}"]
    assert f'--blocks "{folders / "plan.json"}:50%"' in done.stdout.replace("\n", "")
    assert "measuring sets of blocks: " in done.stderr


def test_sensitivity_draws_and_leaves_no_notes(folders, measured):  # noqa: ARG001
    picture = (folders / "plan.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    assert not (folders / "plan.json.notes").exists()
    told = refused("sensitivity", folders / "standard", "--out", folders / "plan.json")
    assert "plan.json exists already. What to do: name another file" in told


def test_sensitivity_of_a_factory_needs_no_text(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    done = run("sensitivity", "own_nets:net", "--json")
    sys.modules.pop("own_nets", None)
    assert done.exit_code == 0, done.output
    plan = BlockPlan.model_validate_json(done.stdout)
    assert (plan.model, plan.tokens, plan.standard_loss) == ("Sequential", 4, None)
    assert [block.kl is None for block in plan.blocks] == [True, False, False]


def test_sensitivity_refuses(folders, tmp_path):
    text = ("--text", folders / "text.txt")
    assert "No text to measure on." in refused("sensitivity", folders / "standard")
    assert "is the checkpoint of a ladder: config.json has blocks 2-3" in refused(
        "sensitivity", folders / "ladder", *text, *SIZES
    )
    assert "a share of 2" in refused(
        "sensitivity", folders / "standard", *text, *SIZES, "--share", "0.5,2"
    )
    assert "The text is too short: 201 tokens in" in refused(
        "sensitivity", folders / "standard", *text, "--length", 16
    )
    (tmp_path / "config.json").write_text((folders / "standard" / "config.json").read_text())
    assert "has no weights: random ones" in refused("sensitivity", tmp_path, *text)
    done = run("sensitivity", tmp_path, *text, "--json")
    assert "has no weights" in json.loads(done.stdout)["error"]["summary"]


# ---- evaluate


READS = ["model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm"]


def expected(folders, ladder, chosen):
    """The evaluation of an eager ladder of the folder, on the same tokens."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    standard, other = (load(folders / name).eval() for name in ("standard", ladder))
    batches, _ = batches_of(standard, str(folders / "standard"), [folders / "text.txt"], 64, 16, 2)
    with eager_ladder(other, READS, chosen=chosen):
        return evaluate(standard, other, batches)


@pytest.mark.parametrize(
    ("ladder", "flags", "chosen"),
    [("ladder", (), {2, 3}), ("standard", ("--blocks", "1:3"), {1, 2})],
)
def test_evaluate_a_ladder_that_says_so_or_of_options(folders, ladder, flags, chosen):
    names = (folders / "standard", folders / ladder, "--text", folders / "text.txt")
    done = run("evaluate", *names, *SIZES, *flags, "--json")
    assert done.exit_code == 0, done.output
    found, wanted = json.loads(done.stdout), expected(folders, ladder, chosen)
    assert (found["sequences"], found["tokens"], found["tasks"]) == (4, 64, {})
    for name in ("kl", "agreement", "standard_perplexity", "perplexity", "added_loss"):
        assert found[name] == pytest.approx(vars(getattr(wanted, name)), rel=1e-4), name
    assert found["kl"]["low"] < found["kl"]["value"] < found["kl"]["high"]
    ratio = found["perplexity"]["value"] / found["standard_perplexity"]["value"]
    assert math.log(ratio) == pytest.approx(found["added_loss"]["value"])


def test_evaluate_shows_a_table(folders, measured):
    plan = measured[1]
    names = (folders / "standard", folders / "standard", "--text", folders / "text.txt")
    done = run("evaluate", *names, *SIZES, "--blocks", f"{folders / 'plan.json'}:50%")
    assert done.exit_code == 0, done.output
    assert "4 sequences, 64 tokens" in done.stdout
    (perplexity,) = (row for row in done.stdout.splitlines() if row.startswith("perplexity"))
    assert float(perplexity.split()[1]) == pytest.approx(math.exp(plan.standard_loss), abs=1e-3)
    (kl,) = (row.split() for row in done.stdout.splitlines() if row.startswith("KL("))
    assert float(kl[-4]) == pytest.approx(plan.best(0.5).kl, abs=1e-3)


def test_scores_of_tasks_stand_next_to_each_other(capsys):
    scores = {"standard": {"quiz": {"acc": 0.75}}, "ladder": {"quiz": {"acc": 0.5}}}
    show_tasks(scores, console())
    assert ["quiz", "acc", "0.75", "0.5"] in map(str.split, capsys.readouterr().out.splitlines())


def test_evaluate_refuses(folders):
    standard, ladder = (folders / name for name in ("standard", "ladder"))
    text = ("--text", folders / "text.txt", *SIZES)
    assert "is not a ladder: its config.json does not say" in refused(
        "evaluate", standard, standard, *text
    )
    assert "No text to measure on." in refused("evaluate", standard, ladder)
    assert "another ladder than the checkpoint is" in refused(
        "evaluate", standard, ladder, *text, "--blocks", "[1]"
    )
    told = refused("evaluate", standard, ladder, *text, "--task", "nowhere.yaml")
    assert "pip install lm_eval" in told or "nowhere.yaml: no such task file" in told


# ---- plan --sensitivity


def test_plan_with_what_sets_cost(folders, measured):  # noqa: ARG001
    how = ("--hardware", "h100x8-nvlink", "--batch", "1", "--prompt", 16, "--new", 4)
    command = ("plan", f"hf:{folders / 'standard'}", *how, "--sensitivity", folders / "plan.json")
    done = run(*command)
    assert done.exit_code == 0, done.output
    points = json.loads(run(*command, "--json").stdout)["damage"]
    assert "sets at batch 1" in done.stdout
    rows = [line for line in done.stdout.splitlines() if "blocks" in line and line.endswith("x")]
    assert len(rows) == len(points) >= 2
    (row,) = (line for line in rows if "<- advised" in line)
    best = points[rows.index(row)]
    assert f"{best['kl']:.3f}" in row and f"{best['speedup']:.2f}x" in row
    assert f"Advised, at the knee of gain and damage: --blocks {best['blocks']}" in done.stdout


def test_a_plan_refuses_the_sets_of_another_model(folders, measured, tmp_path):
    path, blocks = tmp_path / "plan.json", [*measured[1].blocks, measured[1].blocks[-1]]
    path.write_text(measured[1].model_copy(update={"blocks": blocks}).model_dump_json())
    told = refused("plan", f"hf:{folders / 'standard'}", "--sensitivity", path)
    assert "measured on another model (LlamaForCausalLM" in told
    assert "it has 5 blocks, this one has 4" in told
