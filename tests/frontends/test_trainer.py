"""transformers' Trainer on a model that was made a ladder: it trains, evaluates, saves, resumes."""

import copy
from functools import partial

import accelerate
import pytest
import torch
import transformers
from helpers.language_models import language_model
from helpers.reads import HEAD
from torch._dynamo.utils import counters

import ladderize
from ladderize.testing import eager_ladder

EXAMPLES = [{"input_ids": ids, "labels": ids} for ids in torch.arange(48).reshape(6, 8) % 60]


def losses(model, folder, checkpointed, steps=2):
    """On the same texts, before and after a few steps of training."""
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        gradient_checkpointing=checkpointed,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        per_device_train_batch_size=2,
        max_steps=steps,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = transformers.Trainer(model, settings, train_dataset=EXAMPLES, eval_dataset=EXAMPLES)
    before = trainer.evaluate()["eval_loss"]
    if not steps:
        return before, before
    trainer.train()
    return before, trainer.evaluate()["eval_loss"]


def run(model, folder, resume=False):
    """Four steps of two batches each; after two of them it evaluates, and saves. All losses."""
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = transformers.Trainer(model, settings, train_dataset=EXAMPLES, eval_dataset=EXAMPLES)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
    history = trainer.state.log_history
    return [{n: log[n] for n in ("loss", "eval_loss") if n in log} for log in history[:-1]]


def test_a_run_that_is_resumed_goes_on_as_it_did(tmp_path):
    """With accumulated gradients. Training and evaluation are a graph each, of the ladder."""
    make = partial(language_model, "llama")
    counters.clear()
    model = ladderize.compile(make(), lowering="eager")
    found = run(model, tmp_path)
    assert counters["stats"]["unique_graphs"] == 2
    with eager_ladder(whole := make(), HEAD["llama"]):
        expected = run(whole, tmp_path / "eager")
    standard = run(make(), tmp_path / "standard")
    for mine, ladder, other in zip(found, expected, standard, strict=True):
        assert mine == pytest.approx(ladder, abs=2e-4)  # logs are rounded to 1e-4
        assert mine != pytest.approx(other, abs=2e-3)
    resumed = ladderize.compile(make(), lowering="eager")
    assert run(resumed, tmp_path, resume=True) == found
    whole = type(model).from_pretrained(tmp_path / "checkpoint-4")
    assert whole.config.ladder["blocks"] == [0, 1, 2, 3]
    saved = whole.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(saved.pop(name), value)
        assert torch.equal(resumed.state_dict()[name], value)
    assert not saved
    assert run(make(), tmp_path, resume=True) != found  # made of no config.json: a standard model


def test_the_error_of_a_list_that_does_not_have_us(tmp_path):
    said = "'LADDERIZE' is not a valid DynamoBackend"
    with pytest.raises(ValueError, match=said):
        accelerate.Accelerator(dynamo_backend="ladderize", cpu=True)
    settings = {"torch_compile_backend": "ladderize", "report_to": [], "use_cpu": True}
    with pytest.raises(ValueError, match=said):
        transformers.Trainer(
            language_model("llama"),
            transformers.TrainingArguments(output_dir=str(tmp_path), **settings),
        )


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_evaluates_after_it_trained_with_checkpointed_layers(tmp_path):
    """Checkpointing changes no value: the eager ladder does without it."""
    model = language_model("llama")
    whole, standard = copy.deepcopy(model), copy.deepcopy(model)
    found = losses(ladderize.compile(model, lowering="eager"), tmp_path, checkpointed=True)
    with eager_ladder(whole, HEAD["llama"]):
        expected = losses(whole, tmp_path, checkpointed=False)
    assert found == pytest.approx(expected, abs=1e-4)
    assert found[1] < found[0] - 1e-2
    before, _ = losses(standard, tmp_path, checkpointed=False, steps=0)
    assert before != pytest.approx(expected[0], abs=1e-3)
