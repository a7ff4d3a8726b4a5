"""An `Evaluation` as a table for a terminal."""

import json
from collections.abc import Mapping
from dataclasses import asdict

from rich.console import Console

from ladderize.quality.evaluation import Estimate, Evaluation
from ladderize.report.present.tables import plain_table
from ladderize.tools.quality.task_scores import Scores


def show(found: Evaluation, console: Console) -> None:
    """Print both models next to each other, with 95 % intervals."""
    measured = f"{found.sequences} sequences, {found.tokens} tokens"
    table = plain_table(measured, "standard", "ladder", "95 % interval")
    standard = found.standard_perplexity.value
    table.add_row("perplexity", f"{standard:.3f}", *_cells(found.perplexity))
    table.add_row("loss added, nats per token", "", *_cells(found.added_loss))
    table.add_row("KL(standard ‖ ladder), nats per token", "", *_cells(found.kl))
    table.add_row("top-1 agreement", "", *_cells(found.agreement))
    console.print(table, highlight=False)


def as_json(found: Evaluation, scores: Mapping[str, Scores]) -> str:
    """All measurements as JSON; `scores` is empty without tasks."""
    return json.dumps({**asdict(found), "tasks": scores}, indent=1)


def _cells(found: Estimate) -> tuple[str, str]:
    interval = "" if found.low is None else f"{found.low:.3f} to {found.high:.3f}"
    return f"{found.value:.3f}", interval


def show_tasks(scores: Mapping[str, Scores], console: Console) -> None:
    """Print the metrics of lm-eval's tasks.

    Args:
        scores: scores of "standard" and "ladder".
    """
    table = plain_table("task", "metric", "standard", "ladder", left=(0, 1))
    for task, metrics in scores["standard"].items():
        for metric, value in metrics.items():
            other = scores["ladder"][task].get(metric)
            table.add_row(task, metric, f"{value:.4g}", "" if other is None else f"{other:.4g}")
    console.print("", table, highlight=False)
