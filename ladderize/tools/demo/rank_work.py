"""The work of one rank: the ladder by ladderize, and by hand under plain `torch.compile`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import record

from ladderize.backends.emitted import find_disorder, find_races, order_string, read_events
from ladderize.errors import LadderError
from ladderize.report import Report, last_report
from ladderize.testing.emitted_code import record_emitted_code
from ladderize.tools.launch.progress import Reporter

NUM_RUNS = 5  # a race does not show every time

STAGES = {
    "model": "build the model with transformers",
    "reference": "run the eager ladder on one process",
    "survey": "find the residual stream",
    "ladderize": 'torch.compile(model, backend="ladderize")',
    "plain": "torch.compile(the same ladder written by hand)",
    "end": "stop the ranks",
}


@dataclass(frozen=True)
class Compiled:
    """One compiled program: how wrong it was at worst, and what its emitted code does.

    Attributes:
        error: largest difference to the reference over `NUM_RUNS` runs.
        order: the launches, compute and waits, as `order_string` spells them.
        races: what touches a buffer in flight.
        num_early: waits that could have come after another launch.
    """

    error: float
    order: str
    races: tuple[str, ...]
    num_early: int


@dataclass(frozen=True)
class Outcome:
    """What one rank found. `plain` is None where nobody wrote this model's ladder by hand.

    Attributes:
        report: of its ladder on one process.
        scale: the largest logit of the reference.
        drift: largest difference between the ladder and the standard net: another function.
    """

    model: str
    num_weights: int
    report: Report
    scale: float
    drift: float
    ladder: Compiled
    plain: Compiled | None


@dataclass(frozen=True)
class Refusal:
    """This model cannot be converted or sharded as asked, and why."""

    reason: str


@record
def work(hf: str | None, num_layers: int | None, folder: str) -> Outcome | Refusal:
    """Run by the elastic launcher in every rank; reports its stages into `folder`."""
    reporter = Reporter(Path(folder), int(os.environ["RANK"]))
    reporter.stage("model")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    try:
        with torch.no_grad():
            return _compare(hf, num_layers, reporter)
    except LadderError as error:
        # Built anew: Dynamo appends advice on its own debugging to what passes through it.
        return Refusal(str(LadderError(error.summary, error.blockers, error.cure)))
    finally:
        reporter.stage("end")
        dist.destroy_process_group()
        reporter.done()


def _compare(hf: str | None, num_layers: int | None, reporter: Reporter) -> Outcome:
    from ladderize.tools.demo import handwritten, models  # transformers: two seconds, reported

    model = models.build_model(hf, num_layers)
    input_ids = models.make_input(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    reporter.stage("reference")
    is_llama = models.is_llama(model)
    standard = models.logits_of(model, input_ids)
    written = handwritten.ladder_logits(model, input_ids) if is_llama else None

    reporter.stage("survey")
    options: dict[str, Any] = {"lowering": "eager"}
    eager = torch.compile(model, backend="ladderize", fullgraph=True, options=options)
    rewritten = models.logits_of(eager, input_ids)
    report = last_report()
    assert report is not None
    expected = rewritten if written is None else written
    torch._dynamo.reset()

    reporter.stage("ladderize")
    # The vocabulary stays whole, as in the ladder written by hand beside it.
    options = {"mesh": mesh, "verify": "code", "shard_vocabulary": False}
    compiled = torch.compile(model, backend="ladderize", fullgraph=True, options=options)
    ladder = _observe(lambda: models.logits_of(compiled, input_ids), expected)

    plain = None
    if is_llama:
        reporter.stage("plain")
        local = handwritten.shard(model, dist.get_rank(), dist.get_world_size())
        by_hand = torch.compile(handwritten.sharded_ladder_logits, fullgraph=True)
        group_name = mesh.get_group().group_name
        plain = _observe(lambda: by_hand(local, input_ids, group_name), expected)
    return Outcome(
        model=type(model).__name__,
        num_weights=sum(weight.numel() for weight in model.parameters()),
        report=report,
        scale=float(expected.abs().max()),
        drift=_difference(expected, standard),
        ladder=ladder,
        plain=plain,
    )


def _observe(run: Callable[[], Tensor], expected: Tensor) -> Compiled:
    with record_emitted_code() as sources:
        outputs = [run()]
    outputs += [run() for _ in range(NUM_RUNS - 1)]
    program = read_events(sources[0])
    return Compiled(
        error=max(_difference(output, expected) for output in outputs),
        order=order_string(program),
        races=tuple(map(str, find_races(program))),
        num_early=len(find_disorder(program)),
    )


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
