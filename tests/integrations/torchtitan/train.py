"""Run several trainings of torchtitan, one after the other, in the processes of torchrun.

torchrun … train.py RUNS.json FOLDER

RUNS     [{"arguments": [those of torchtitan.train], "environment": {name: value}}]
FOLDER   answers.json: [{"losses": [of each step], "report": ladderize's, as a dict, or null,
                         "bare": what the model says when it is called by itself, with BARE set}]
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import on_cpu
import torch
import torch.distributed as dist

import ladderize
from ladderize import LadderError


def train(arguments: list[str]) -> dict[str, Any]:
    from torchtitan.config import ConfigManager

    torch._dynamo.reset()
    trainer = ConfigManager().parse_args(arguments).build()
    losses = []
    log = trainer.metrics_processor.log

    def note(step: int, loss: float, *others: Any, **more: Any) -> None:
        losses.append(loss)
        log(step, loss, *others, **more)

    trainer.metrics_processor.log = note
    bare = refusal(trainer) if "BARE" in os.environ else ""
    trainer.train()
    trainer.close()
    report = ladderize.last_report()
    return {"losses": losses, "report": report and json.loads(report.to_json()), "bare": bare}


def refusal(trainer: Any) -> str:
    """What a call of the model says that the trainer does not make."""
    (model,) = trainer.model_parts
    ids = torch.zeros(4, 32, dtype=torch.int64)
    try:
        with torch.no_grad():
            model(ids, positions=torch.arange(32).expand(4, -1))
    except LadderError as error:
        return str(error)
    return ""


def main() -> None:
    torch.set_num_threads(1)
    on_cpu.use_cpu()
    dist.init_process_group("gloo")  # for all trainings: torchtitan takes what is there
    torch.autograd.set_multithreading_enabled(False)  # as it does with a group of its own
    runs, folder = Path(sys.argv[1]), Path(sys.argv[2])
    answers = []
    for run in json.loads(runs.read_text()):
        os.environ |= run["environment"]
        began = time.monotonic()
        answers.append(train(run["arguments"]))
        print("TOOK", round(time.monotonic() - began, 1), run["arguments"][:4], flush=True)
        for name in run["environment"]:
            del os.environ[name]
    if dist.get_rank() == 0:
        (folder / "answers.json").write_text(json.dumps(answers))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
