"""An `Evaluation` as a table for a terminal."""

import json
from collections.abc import Mapping
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table

from ladderize.quality.evaluation import Estimate, Evaluation
from ladderize.tools.quality.task_scores import Scores


def show(found: Evaluation, console: Console) -> None:
    """Print both models next to each other, with 95 % intervals."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(f"{found.sequences} sequences, {found.tokens} tokens")
    for column in ("standard", "ladder", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("task", "metric"):
        table.add_column(column)
    for column in ("standard", "ladder"):
        table.add_column(column, justify="right")
    for task, metrics in scores["standard"].items():
        for metric, value in metrics.items():
            other = scores["ladder"][task].get(metric)
            table.add_row(task, metric, f"{value:.4g}", "" if other is None else f"{other:.4g}")
    console.print("", table, highlight=False)
