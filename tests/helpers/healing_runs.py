"""A tiny language model that knows a chain of words, and runs that heal a ladder of it."""

import copy
from functools import cache

import torch

from helpers.language_models import language_model
from helpers.word_tokenizers import chain_text, word_tokenizer
from ladderize.quality import HealingArguments, HealingTrainer

LENGTH = 16
LADDER = {"blocks": "1:4", "lowering": "eager"}


@cache
def texts():
    """400 sequences for training, and 8 held out."""
    words = word_tokenizer()(chain_text(408 * LENGTH))["input_ids"]
    examples = [{"input_ids": row} for row in torch.tensor(words).view(408, LENGTH)]
    return examples[:400], examples[400:]


@cache
def _trained():
    """A model trained to predict the next word; its loss is near ln 2."""
    model = language_model("llama").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = torch.stack([example["input_ids"] for example in texts()[0]])
    for ids in rows.repeat(4, 1).split(8):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def trained_model():
    return copy.deepcopy(_trained())


def arguments(folder, **options):
    standard = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return HealingArguments(output_dir=str(folder), **standard | options)


def trainer(folder, model=None, ladder=LADDER, train_dataset=None, **options):
    train, held_out = texts()
    return HealingTrainer(
        trained_model() if model is None else model,
        arguments(folder, **options),
        ladder=ladder,
        train_dataset=train if train_dataset is None else train_dataset,
        eval_dataset=held_out,
    )
