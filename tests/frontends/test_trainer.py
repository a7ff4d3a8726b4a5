"""transformers' Trainer on a model that was made a ladder: it trains, and evaluates afterwards."""

import copy
from pathlib import Path

import accelerate
import pytest
import torch
import transformers
from helpers.language_models import language_model
from helpers.reads import HEAD

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


def test_the_error_of_a_list_that_does_not_have_us_is_on_the_page(tmp_path):
    said = "'LADDERIZE' is not a valid DynamoBackend"
    with pytest.raises(ValueError, match=said):
        accelerate.Accelerator(dynamo_backend="ladderize", cpu=True)
    settings = {"torch_compile_backend": "ladderize", "report_to": [], "use_cpu": True}
    with pytest.raises(ValueError, match=said):
        transformers.Trainer(
            language_model("llama"),
            transformers.TrainingArguments(output_dir=str(tmp_path), **settings),
        )
    page = Path(__file__).parents[2] / "docs" / "training.md"
    assert f"`ValueError: {said}`" in page.read_text()


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
