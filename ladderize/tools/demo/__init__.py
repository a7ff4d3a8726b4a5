"""`ladderize demo`: run a sharded ladder on this machine.

parent    starts the ranks (ladderize/tools/launch) and prints their results
a rank    on_rank.py
"""

import json
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ladderize.errors import LadderError
from ladderize.tools.launch.progress import Steps, follow

if TYPE_CHECKING:
    from ladderize.tools.demo.on_rank import Shown

MAX_ERROR = 1e-4
NUM_BLOCKS_SHOWN = 3
OWN_MODEL = """
[bold]For your own model[/]
# my_script.py
mesh = torch.distributed.device_mesh.init_device_mesh("cuda", (num_gpus,))     # or "cpu"
model = torch.compile(model, backend="ladderize", fullgraph=True, options={"mesh": mesh})

$ torchrun --nproc-per-node NUM_GPUS my_script.py
"""


class DemoError(LadderError):
    """The demo cannot run or found a wrong result; the message says why."""


def run_demo(
    console: Console, num_ranks: int, num_layers: int | None, hf: str | None, as_json: bool = False
) -> None:
    """Run the demo and print it on `console`.

    Args:
        num_ranks: number of processes to shard over.
        num_layers: number of layers, None for the configuration's default.
        hf: path of another causal LM's configuration, None for the small random Llama.
        as_json: print only JSON on stdout.

    Raises:
        DemoError: transformers is missing, a rank failed, or the result is wrong.
        LadderError: the model is refused.
    """
    if find_spec("transformers") is None:
        raise DemoError("the demo needs transformers: pip install 'ladderize[demo]'")
    if hf is not None and not Path(hf).exists():
        raise DemoError(f"--hf {hf}: no such file or folder")
    told = Console(stderr=True) if as_json else console
    with Steps(told) as steps, tempfile.TemporaryDirectory(prefix="ladderize-demo-") as name:
        steps.begin("load torch")
        from ladderize.tools.demo.on_rank import STAGES, work  # loads torch
        from ladderize.tools.launch.ranks import RankFailed, launch

        steps.begin(f"start {num_ranks} ranks (torch's elastic launcher, gloo)")
        with follow(Path(name), num_ranks, STAGES, steps):
            try:
                results = launch(work, (hf, num_layers), num_ranks, Path(name))
            except RankFailed as failed:
                raise DemoError(str(failed)) from None
    error = max(result.error for result in results)
    is_right = error <= MAX_ERROR  # not when it is NaN
    if as_json:
        console.print_json(json.dumps({"ok": is_right, **_as_data(results, error)}))
    else:
        _show(console, results, error)
    if not is_right:
        raise DemoError(f"the sharded ladder is off by {error:.1e}, more than {MAX_ERROR:.0e}")
    if not as_json:
        console.print("[bold green]demo OK[/]")


def _as_data(ranks: Sequence["Shown"], error: float) -> dict[str, object]:
    first = ranks[0]
    return {
        "model": first.model,
        "num_ranks": len(ranks),
        "drift": first.drift,
        "error": error,
        "order": first.order,
        "report": json.loads(first.report.to_json()),
    }


def _show(console: Console, ranks: Sequence["Shown"], error: float) -> None:
    first = ranks[0]

    def say(text: str, markup: bool = False) -> None:
        console.print(text, highlight=False, markup=markup)

    say(f"\n{first.model}, {first.num_weights:,} random weights, on {len(ranks)} ranks\n")
    say(first.report.table(False, console.width))
    reference = "an independent eager ladder" if first.is_independent else "its unsharded rewrite"
    say(
        f"\nLargest difference between the logits on {len(ranks)} ranks and {reference} on one "
        "process:\n"
        f"  [bold]{error:.1e}[/]   (the logits reach {first.scale:.1f}; those of the standard "
        f"model differ by up to {first.drift:.1f})\n",
        markup=True,
    )
    blocks = blocks_of(first.order)
    shown = range(1, min(1 + NUM_BLOCKS_SHOWN, len(blocks)))
    say(f"Order of the code that Inductor generated, blocks 1 to {shown[-1]} of {len(blocks)}:")
    for index in shown:
        words = ("attention" if "attention" in word else word for word in blocks[index].split())
        say(f"  block {index}   {' '.join(words)}")
    say(
        "AR_i launches the all-reduce of block i and W_i waits for it; the kernels in between hide "
        "it.\nk is a fused kernel; other words are names of kernels."
    )
    say(OWN_MODEL, markup=True)


def blocks_of(order: str) -> list[str]:
    """An order string cut after each launch; the waits at the end stay with the last block."""
    blocks: list[list[str]] = [[]]
    for word in order.split():
        blocks[-1].append(word)
        if word.startswith("AR_"):
            blocks.append([])
    tail = blocks.pop()
    if not blocks:
        return [" ".join(tail)]
    blocks[-1] += tail
    return [" ".join(block) for block in blocks]
