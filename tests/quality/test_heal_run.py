"""`heal`: from a folder to a folder, interrupted, resumed, refused; and its verb."""

import json
import os
import signal
import warnings

import peft  # noqa: F401  the slow import is not part of a test
import pytest
import torch
import transformers
from helpers.healing_runs import trained_model
from helpers.language_models import language_model
from helpers.word_tokenizers import chain_text, word_tokenizer
from typer.testing import CliRunner

import ladderize
from ladderize import LadderError
from ladderize.quality import heal
from ladderize.quality.runs.heal_inputs import arguments_of, parted
from ladderize.quality.runs.heal_options import HealOptions
from ladderize.quality.runs.heal_watcher import HealWatcher
from ladderize.quality.runs.run_folder import RunFolder
from ladderize.tools.cli import app

SETTINGS = {
    "blocks": "1:4",
    "lowering": "eager",
    "steps": 20,
    "length": 16,
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model in bfloat16, as checkpoints are."""
    folder = tmp_path_factory.mktemp("source") / "standard"
    trained_model().bfloat16().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    """Tracing with LoRA takes long."""
    folder = tmp_path_factory.mktemp("one layer") / "standard"
    language_model("llama", num_hidden_layers=1).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "chain.txt"
    path.write_text(chain_text(3_000))
    return path


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


class Stages(HealWatcher):
    """Records calls, and may act at a step."""

    def __init__(self, step=None, action=None):
        self.stages, self.losses, self.step, self.action = [], [], step, action

    def stage(self, text):
        self.stages.append(text)

    def progress(self, done, total, logs):  # noqa: ARG002
        self.losses += [logs["kl"]] if "kl" in logs else []
        if done == self.step and not logs:
            self.action()


def test_a_folder_becomes_a_healed_ladder(source, text, tmp_path):
    out, watcher = tmp_path / "out", Stages()
    result = heal(source, out, [text], watcher=watcher, **SETTINGS)
    assert watcher.stages == [
        f"loading {source}",
        "finding the blocks",
        "reading text",
        "measuring the ladder",
        "training",
        f"writing {out}",
    ]
    assert len(watcher.losses) == 20
    assert result.recovered("kl") > 0.5 and result.recovered("loss") > 0.5
    assert (result.blocks, result.num_blocks, result.tokens) == ((1, 2, 3), 4, 20 * 4 * 16)
    written = json.loads((out / "heal.json").read_text())
    assert written["after"] == result.after and written["options"]["learning_rate"] == 1e-2
    kls = [(row["tokens"], row["eval_kl"]) for row in written["curve"] if "eval_kl" in row]
    assert [tokens for tokens, _ in kls] == [2 * 64 * step for step in range(11)]
    assert kls[0][1] == result.before["kl"] and kls[-1][1] == result.after["kl"]
    config = json.loads((out / "config.json").read_text())
    assert config["ladder"]["blocks"] == [1, 2, 3] and config["dtype"] == "bfloat16"
    assert not (out / "checkpoints").exists()
    healed = load(out)
    assert transformers.AutoTokenizer.from_pretrained(out).get_vocab()["w2"] == 2
    ids = torch.tensor([word_tokenizer()(chain_text(64, seed=1))["input_ids"]])
    wanted = load(source)(ids).logits.float().log_softmax(-1)
    found = ladderize.compile(healed, lowering="eager")(ids).logits.float().log_softmax(-1)
    assert (wanted.exp() * (wanted - found)).sum(-1).mean() < 2 * result.after["kl"]
    with pytest.raises(LadderError, match="out exists already"):
        heal(source, out, [text], **SETTINGS)
    with pytest.raises(
        LadderError, match=r"already those of a ladder: config\.json has blocks 1-3"
    ):
        heal(out, tmp_path / "again", [text], **SETTINGS)
    assert not (tmp_path / "again").exists()


def test_a_run_of_lora_that_is_interrupted(one_layer, text, tmp_path):
    """The same command resumes it; with other options it is refused, or starts over.

    Its checkpoints have only the adapters, so the fit is repeated.
    """
    settings = {**SETTINGS, "blocks": [1], "steps": 6, "lora": 4, "self_generated": 100}
    settings["fit_tokens"] = 500
    whole = heal(one_layer, tmp_path / "whole", [text], **settings)
    out = tmp_path / "out"
    stop = Stages(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(LadderError, match=r"stopped by SIGTERM after step 4 of 6\."):
        heal(one_layer, out, [text], watcher=stop, **settings)
    own = (out / "self_generated.jsonl").read_bytes()
    with pytest.raises(LadderError) as caught:
        heal(one_layer, out, [text], **{**settings, "steps": 9, "lora": 2})
    assert [str(blocker) for blocker in caught.value.blockers] == [
        "steps=9 is given, but it was started with 6",
        "lora=2 is given, but it was started with 4",
    ]
    (other := tmp_path / "other.txt").write_text(chain_text(3_000, seed=5))
    with pytest.raises(LadderError, match="the text differs from the one that it was started with"):
        heal(one_layer, out, [other], **settings)
    watcher = Stages()
    resumed = heal(one_layer, out, [text], watcher=watcher, **settings)
    assert len(watcher.losses) < 6 and "fitting the reads" in watcher.stages
    assert not any(stage.startswith("measuring") for stage in watcher.stages)
    assert resumed.after == whole.after and resumed.curve == whole.curve
    standard = load(one_layer).state_dict()
    assert load(out).state_dict().keys() == standard.keys()
    changed = {n for n, value in load(out).state_dict().items() if not value.equal(standard[n])}
    assert len(changed) == 7  # all linear layers but the head
    for mine, theirs in zip(
        load(out).parameters(), load(tmp_path / "whole").parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert (out / "self_generated.jsonl").read_bytes() == own
    assert (tmp_path / "whole" / "self_generated.jsonl").read_bytes() == own
    lines = [json.loads(line)["text"] for line in own.decode().splitlines()]
    assert sum(len(line.split()) for line in lines) >= 80  # ends are not in the text
    assert whole.recovered("kl") > 0.1


def test_what_is_held_out_is_not_trained_on():
    """Five percent of the training tokens, in whole batches."""
    tokens = torch.arange(600 * 8).view(600, 8)
    for ranks, steps, count in ((1, 100, 20), (2, 100, 32), (2, 10, 8), (1, 1, 4)):
        options = HealOptions(steps=steps, batch=4, length=8)
        trained, held_out = parted(tokens, options, ranks)
        assert (len(held_out), len(trained)) == (count, 600 - count)
        assert len(torch.cat([trained, held_out]).unique()) == tokens.numel()


def test_a_folder_is_replaced_by_force_alone(tmp_path):
    out = tmp_path / "out"
    run = RunFolder(out, {"steps": 3})
    run.begin()
    run.note("before", {"kl": 1.0})
    RunFolder(out, {"steps": 5}).begin()  # nothing was done
    RunFolder(out, {"steps": 3}).begin()
    run.note("before", {"kl": 1.0})
    (out / "checkpoints" / "checkpoint-1").mkdir()
    (out / "checkpoints" / "checkpoint-1" / "trainer_state.json").write_text("{}")
    (out / "checkpoints" / "checkpoint-2").mkdir()  # as a run that is killed leaves it
    RunFolder(out, {"steps": 3}, force=True).begin()  # the same run: it goes on
    assert not (out / "checkpoints" / "checkpoint-2").exists()
    assert RunFolder(out, {"steps": 3}).noted("before") == {"kl": 1.0}
    with pytest.raises(LadderError, match=r"steps=4 is given, but it was started with 3"):
        RunFolder(out, {"steps": 4})
    RunFolder(out, {"steps": 4}, force=True).begin()
    assert RunFolder(out, {"steps": 4}).noted("before") is None
    (out / "checkpoints" / "run.json").unlink()
    RunFolder(out, {"steps": 3}).begin()  # killed before it wrote that
    (out / "checkpoints" / "run.json").unlink()
    (out / "heal.json").write_text("{}")
    with pytest.raises(LadderError, match="out exists already"):
        RunFolder(out, {"steps": 3})
    RunFolder(out, {"steps": 3}, force=True).begin()
    RunFolder(out, {"steps": 3}).begin()  # and it is resumed without --force


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0, "batch": -1}, "batch=-1 is not above 0"),
        ({"staleness": 9}, "staleness=9 is not a whole number"),
        ({"step": 3}, "'step'; did you mean 'steps'?"),
        ({"blocks": "9:12"}, "9:12"),
        ({"batch": 500}, "The text is too short"),
        ({"length": 65}, "The model has 64 positions"),
    ],
)
def test_what_is_refused_writes_nothing(source, text, tmp_path, options, said):
    with pytest.raises(LadderError) as caught:
        heal(source, tmp_path / "out", [text], **{**SETTINGS, **options})
    assert said in str(caught.value)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left in ([], ["run.json"])


def test_folders_that_are_none(source, text, tmp_path):
    with pytest.raises(LadderError, match="nowhere: no such file or folder"):
        heal(tmp_path / "nowhere", tmp_path / "out", [text])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LadderError, match="empty cannot be loaded as a causal LM"):
        heal(tmp_path / "empty", tmp_path / "out", [text])
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(LadderError, match=r"gguf"):
        heal(tmp_path, tmp_path / "out", [text])
    with pytest.raises(LadderError, match="a directory that ladderize did not write"):
        heal(source, text.parent, [text], force=True)


def test_the_verb(source, text, tmp_path):
    out = tmp_path / "out"
    flags = "--blocks 1:4 --lowering eager --steps 3 --length 16 --learning-rate 1e-2"
    flags += " --fit-tokens 1000"
    command = ["heal", f"hf:{source}", "--text", str(text), "--out", str(out), *flags.split()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        again = CliRunner().invoke(app, command)
    words = done.stdout.split()
    assert "3 of 4 blocks read stale; 192 tokens" in done.stdout and {"fitted", "healed"} <= {
        *words
    }
    assert "training: step 3 of 3, loss" in done.stderr
    assert again.exit_code == 1 and again.stderr.count("\n") == 1
    assert "exists already. What to do: overwrite it with --force" in again.stderr


def test_products_in_bfloat16(tmp_path):
    for wanted in (True, False):
        assert arguments_of(HealOptions(blocks="1:2", bfloat16=wanted), tmp_path).bf16 is wanted
    assert arguments_of(HealOptions(blocks="1:2"), tmp_path).bf16 is False  # no GPU
