"""Run lm-eval tasks on a model in memory; the tasks and their data are local files.

task.yaml, model, tokenizer ── lm_eval.simple_evaluate ── {"task": {"acc": 0.71, …}}
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from ladderize.errors import LadderError

Scores = Mapping[str, Mapping[str, float]]


def refuse_tasks(tasks: Sequence[Path]) -> None:
    """Raise `LadderError` if lm-eval or the file of a task is missing."""
    if tasks and find_spec("lm_eval") is None:
        raise LadderError("Tasks are run by lm-eval.", cure="pip install lm_eval")
    for task in tasks:
        if not task.is_file():
            raise LadderError(f"{task}: no such task file.", cure="name the YAML file of a task")


def task_scores(model: nn.Module, tokenizer: Any, tasks: Sequence[Path], batch: int) -> Scores:
    """The metrics of each task, by its name.

    Args:
        model: transformers model, or the result of `ladderize.compile`, which runs as a ladder.
        tokenizer: tokenizer of the model.
        tasks: YAML files of lm-eval tasks.
        batch: number of requests per call.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    runner = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    manager = TaskManager(include_path=[str(task.parent) for task in tasks])
    names = [_name_of(task) for task in tasks]
    found = simple_evaluate(runner, tasks=names, task_manager=manager)
    return {name: _numbers(metrics) for name, metrics in found["results"].items()}


def _name_of(task: Path) -> str:
    import yaml

    data = yaml.load(task.read_text("utf-8"), Loader=yaml.BaseLoader)
    return str(data.get("task") or task.stem)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name.removesuffix(",none"): float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float)
    }
