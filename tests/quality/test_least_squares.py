"""The least-squares fit: what it fits, what it leaves, and its gain without training."""

import copy
import json

import peft
import pytest
import torch
import transformers
from helpers.healing_runs import LADDER, texts, trained_model, trainer
from helpers.language_models import SIZES, language_model
from helpers.word_tokenizers import chain_text, word_tokenizer
from safetensors.torch import load_file
from torch import nn

import ladderize
from ladderize import LadderError
from ladderize.quality import heal
from ladderize.quality.fitting.least_squares import fit_reads
from ladderize.quality.runs.heal_inputs import fitted_on
from ladderize.quality.runs.heal_options import HealOptions
from ladderize.quality.runs.heal_watcher import HealWatcher

SECOND_LAYER = {"blocks": [2, 3], "lowering": "eager"}


def batches(count=25):
    rows = torch.stack([example["input_ids"] for example in texts()[0]])
    return [{"input_ids": each} for each in rows[: 4 * count].split(20)]


def weights_of(model):
    return {name: each.detach().clone() for name, each in model.named_parameters()}


def changed(model, before):
    return [name for name, each in model.named_parameters() if not torch.equal(each, before[name])]


class Branch(nn.Module):
    """`up(down(x))`, rows of features; `down` may be stored by inputs, as GPT-2's weights are."""

    def __init__(self, by_inputs):
        super().__init__()
        self.down, self.bias = nn.Parameter(0.5 * torch.randn(6, 6)), nn.Parameter(torch.randn(6))
        self.up = nn.Linear(6, 6)
        self.by_inputs = by_inputs

    def forward(self, x):
        if self.by_inputs:
            return self.up(torch.addmm(self.bias, x, self.down))
        return self.up(nn.functional.linear(x, self.down, self.bias))


class Sorted(Branch):
    """A branch that sorts its rows by a computed order."""

    def forward(self, x):
        order = nn.functional.linear(x, self.down)[:, 0].argsort()
        return self.up(x[order])


class Chain(nn.Module):
    def __init__(self, last=Branch):
        super().__init__()
        branches = [Branch(by_inputs=number == 2) for number in range(3)]
        self.blocks = nn.ModuleList([*branches, last(by_inputs=False)])

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


def test_what_is_linear_in_the_stale_stream_is_found():
    """`x1 = x0 M + c`, and the last feature of x0 is 1: what block 1 reads has an exact map."""
    torch.manual_seed(0)
    standard = Chain()
    with torch.no_grad():  # the branches leave the last feature, 1, as it is
        for block in standard.blocks:
            block.up.weight[-1] = block.up.bias[-1] = 0.0
    model, x = copy.deepcopy(standard), torch.randn(2, 40, 6)
    x[..., -1] = 1.0
    before = weights_of(standard)
    with torch.no_grad():  # it is found from other weights, too
        model.blocks[3].down += torch.randn(6, 6)
    found = fit_reads(model, standard, [{"x": each} for each in x], SECOND_LAYER, ridge=1e-7)
    assert found.weights == ("blocks.2.down", "blocks.3.down") and found.left == ()
    assert changed(model, before) == list(found.weights) and not changed(standard, before)
    wanted = standard(x[0])
    assert (ladderize.compile(copy.deepcopy(standard), **SECOND_LAYER)(x[0]) - wanted).norm() > 1
    got = ladderize.compile(model, **SECOND_LAYER)(x[0])
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_a_ladder_without_a_step(tmp_path):
    run = trainer(tmp_path)
    before, weights, seen = run.evaluate(), weights_of(run.model), []
    found = run.fit(batches(), lambda *done: seen.append(done))
    after = run.evaluate()
    assert before["eval_kl"] > 0.5 and after["eval_kl"] < 0.5 * before["eval_kl"]
    assert after["eval_standard_loss"] == before["eval_standard_loss"]
    first = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    assert found.weights[:2] == first and len(found.weights) == 7 and found.left == ()
    assert changed(run.model, weights) == sorted(found.weights, key=list(weights).index)
    assert not changed(run.teacher, weights)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    fit_reads(again := trained_model(), trained_model(), batches(), LADDER)
    assert not changed(again, weights_of(run.model))


def test_padding_and_batches_of_other_shapes_do_not_count():
    """A row in two parts, one of them padded, is the row."""
    (whole,) = batches(5)
    ids = whole["input_ids"]
    masks = torch.ones(20, 10, dtype=torch.int64), torch.ones(20, 9, dtype=torch.int64)
    masks[0][:, 6:] = 0
    found = []
    for cut in (
        [{"input_ids": ids[:, :6]}, {"input_ids": ids[:, :9]}],
        [
            {"input_ids": ids[:, :10], "attention_mask": masks[0]},
            {"input_ids": ids[:, :9], "attention_mask": masks[1]},
        ],
    ):
        model = language_model("llama", num_hidden_layers=1)
        fit_reads(model, copy.deepcopy(model), cut, {**LADDER, "blocks": [1]})
        found.append(weights_of(model))
    for mine, theirs in zip(*(each.values() for each in found), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_weights_with_another_reader_are_left():
    model = language_model("llama")
    model.model.layers[1].self_attn.q_proj = model.model.layers[0].self_attn.q_proj
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    before = weights_of(model)
    found = fit_reads(model, copy.deepcopy(model), batches(5), SECOND_LAYER)
    names = [name.removeprefix("model.layers.1.") for name in found.weights]
    assert names == ["self_attn.k_proj.weight", "self_attn.v_proj.weight", "mlp.gate_proj.weight"]
    assert found.left == ("block 2: linear", "block 3: linear")
    assert changed(model, before) == sorted(found.weights, key=list(before).index)


def test_rows_that_a_block_selects_are_left():
    torch.manual_seed(0)
    model = Chain(last=Sorted)
    found = fit_reads(model, copy.deepcopy(model), [{"x": torch.randn(40, 6)}], SECOND_LAYER)
    assert found.weights == ("blocks.2.down", "blocks.3.down")
    assert found.left == ("block 3: getitem",)


def test_a_mixture_of_experts():
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, num_local_experts=4)
    model = transformers.MixtralForCausalLM(config).eval()
    before = weights_of(model)
    found = fit_reads(model, copy.deepcopy(model), batches(5), {**SECOND_LAYER, "blocks": [3]})
    assert found.weights == ("model.layers.1.mlp.gate.weight",) and len(found.left) == 1
    assert changed(model, before) == list(found.weights)


def test_the_base_model_of_adapters(tmp_path):
    """The teacher shared it: it keeps what it had; the adapters stay as they are."""
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    run = trainer(tmp_path, peft.get_peft_model(trained_model(), settings))
    weights = weights_of(run.model)
    found = run.fit(batches())
    assert len(found.weights) == 7 and all("base_layer" in name for name in found.weights)
    assert set(changed(run.model, weights)) == set(found.weights)
    assert not changed(run.teacher, weights)
    fit_reads(plain := trained_model(), trained_model(), batches(), LADDER)
    for name, each in plain.named_parameters():
        stem, _, last = f"base_model.model.{name}".rpartition(".")
        full = f"{stem}.base_layer.{last}"
        if full in found.weights:
            torch.testing.assert_close(run.model.get_parameter(full), each)


def test_what_cannot_be_fitted():
    model = trained_model()
    with pytest.raises(LadderError) as caught:
        fit_reads(model, trained_model(), [], LADDER, ridge=0)
    said = [str(blocker) for blocker in caught.value.blockers]
    assert said == ["there are no batches", "ridge=0 is not above 0"]
    before = weights_of(model)
    (teacher := trained_model()).model.layers[0].mlp.up_proj.weight.data[3] = torch.inf
    with pytest.raises(LadderError, match=r"of block 1 have no finite solution: .*\.up_proj\."):
        fit_reads(model, teacher, batches(5), LADDER)
    assert changed(model, before) == ["model.layers.0.mlp.gate_proj.weight"]
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(LadderError, match="No weight of the converted blocks can be fitted:"):
        fit_reads(model, copy.deepcopy(model), batches(5), {**LADDER, "blocks": [1]})


# ---- a run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    language_model("llama", num_hidden_layers=1).save_pretrained(folder / "standard")
    word_tokenizer().save_pretrained(folder / "standard")
    (folder / "text.txt").write_text(chain_text(3_000))
    return folder


class EndsAt(HealWatcher):
    """Interrupts a run before the checkpoint of a step; notes the stages."""

    def __init__(self, step=None):
        self.stages, self.step = [], step

    def stage(self, text):
        self.stages.append(text)

    def progress(self, done, total, logs):  # noqa: ARG002
        if self.stages[-1] == "training" and done == self.step:
            raise KeyboardInterrupt


def test_a_run_that_begins_with_it(folder, tmp_path):
    """Interrupted after a checkpoint and resumed, it equals an uninterrupted run."""
    settings = {"blocks": [1], "lowering": "eager", "steps": 2, "length": 16, "fit_tokens": 2000}
    settings["learning_rate"] = 1e-3
    run = folder / "standard", tmp_path / "whole", [folder / "text.txt"]
    whole = heal(*run, **settings)
    kls = [each["kl"] for each in (whole.before, whole.fitted, whole.after)]
    assert kls[1] < 0.7 * kls[0] and kls[2] < 1.2 * kls[1]
    out, ended, resumes = tmp_path / "out", EndsAt(step=2), EndsAt()
    with pytest.raises(KeyboardInterrupt):
        heal(run[0], out, run[2], watcher=ended, **settings)
    resumed = heal(run[0], out, run[2], watcher=resumes, **settings)
    assert ended.stages[-3:] == ["fitting the reads", "measuring the fitted ladder", "training"]
    others = ("fitting", "measuring")
    assert not any(stage.startswith(others) for stage in resumes.stages)
    assert resumed.curve == whole.curve and resumed.fitted == whole.fitted
    written = json.loads((out / "heal.json").read_text())
    rows = [(row["tokens"], row["eval_kl"]) for row in written["curve"] if "eval_kl" in row]
    assert rows[:2] == [(0, kls[0]), (0, kls[1])] and rows[-1] == (2 * 64, kls[2])
    files = (each / "model.safetensors" for each in (tmp_path / "whole", out))
    mine, theirs, standard = map(load_file, (*files, folder / "standard" / "model.safetensors"))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    first = "model.layers.0.mlp.up_proj.weight"
    assert (mine[first] - standard[first]).norm() > 0.1 * standard[first].norm()


def test_the_tokens_that_it_is_fitted_on():
    """Whole batches, spread over the text, and no more than there are."""
    rows = torch.arange(50).view(50, 1).repeat(1, 8)
    for tokens, count in ((0, 4), (1, 4), (170, 20), (10_000, 48)):
        found = fitted_on(rows, HealOptions(batch=4, length=8, fit_tokens=tokens))
        assert all(len(each["input_ids"]) == 4 for each in found)
        taken = torch.cat([each["input_ids"] for each in found])[:, 0]
        assert len(taken.unique()) == len(taken) == count
        assert (taken[0], taken[-1]) == (0, 49)
    with pytest.raises(LadderError, match="fit_tokens=-1 is below 0"):
        HealOptions(fit_tokens=-1)
