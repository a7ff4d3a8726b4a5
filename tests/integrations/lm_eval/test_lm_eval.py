"""`ladderize evaluate --task`: lm-eval's metrics of both models equal those made from logits."""

import json
import math

import pytest
import torch
from helpers.language_models import language_model
from helpers.word_tokenizers import chain_text, word_tokenizer
from typer.testing import CliRunner

from ladderize.testing import eager_ladder
from ladderize.tools.cli import app

READS = ["model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm"]
CHOICE = """
task: tiny_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
task: tiny_rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""


def questions(number=48, choices=4):
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(2, 64, (number, 2 + choices), generator=generator).tolist()
    answers = torch.randint(0, choices, (number,), generator=generator).tolist()
    return [(row[:2], row[2:], answer) for row, answer in zip(words, answers, strict=True)]


def write_task(folder, text, rows):
    """The YAML file of a task on local rows."""
    data = folder / "rows.jsonl"
    folder.mkdir()
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    lines = [f"{name}: {json.dumps(value)}" for name, value in where.items()]
    (folder / "task.yaml").write_text("\n".join([text.strip(), *lines, "test_split: test", ""]))
    return folder / "task.yaml"


def spelled(words):
    return " ".join(f"w{word}" for word in words)


@torch.no_grad()
def log_probabilities(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def accuracy(model):
    """The accuracy of the most probable choice after the question."""
    hits = 0
    for question, choices, answer in questions():
        hits += int(log_probabilities(model, question)[-1, choices].argmax()) == answer
    return hits / len(questions())


def word_perplexity(model, texts):
    """Each text is read from <eos> on."""
    total = count = 0
    for text in texts:
        ids = word_tokenizer()(text)["input_ids"]
        found = log_probabilities(model, [0, *ids[:-1]])
        total += float(found.gather(1, torch.tensor(ids)[:, None]).sum())
        count += len(ids)
    return math.exp(-total / count)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    language_model("llama").save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(chain_text(100))
    return tmp_path


def test_tasks_of_a_ladder_and_its_standard_model(folder):
    rows = [
        {
            "question": spelled(question),
            "choices": [f"w{word}" for word in choices],
            "answer": answer,
        }
        for question, choices, answer in questions()
    ]
    texts = [chain_text(15, seed) for seed in range(4)]
    tasks = [
        write_task(folder / "choice", CHOICE, rows),
        write_task(folder / "rolling", ROLLING, [{"text": text} for text in texts]),
    ]
    flags = [word for task in tasks for word in ("--task", task)]
    names = (folder / "model", folder / "model", "--blocks", "1:4", "--text", folder / "text.txt")
    command = ["evaluate", *names, "--tokens", 32, "--length", 16, "--batch", 2, *flags, "--json"]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["tasks"]

    model = language_model("llama")
    standard = accuracy(model), word_perplexity(model, texts)
    with eager_ladder(model, READS, chosen={1, 2, 3}):
        ladder = accuracy(model), word_perplexity(model, texts)
    assert standard[0] != ladder[0]
    for name, (right, perplexity) in (("standard", standard), ("ladder", ladder)):
        assert found[name]["tiny_choice"]["acc"] == pytest.approx(right)
        told = found[name]["tiny_rolling"]["word_perplexity"]
        assert told == pytest.approx(perplexity, rel=1e-4)


def test_a_task_that_is_not_there(folder):
    names = (folder / "model", folder / "model", "--blocks", "1:4", "--task", folder / "none.yaml")
    done = CliRunner().invoke(app, ["evaluate", *map(str, names)])
    assert done.exit_code == 1
    assert "none.yaml: no such task file" in done.stderr
