"""`ladderize demo`: a sharded ladder on this machine, beside what plain `torch.compile` makes.

parent    starts the ranks (ladderize/launch), shows what they do; show.py prints
a rank    work.py; with models.py, handwritten.py
"""

import json
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ladderize.errors import LadderError
from ladderize.tools.launch.progress import follow, steps_on

if TYPE_CHECKING:
    from ladderize.tools.demo.rank_work import Outcome


# A graph from a cache is not emitted, and we want to see it emitted; compiled kernels may come from
# the cache.
NO_GRAPH_CACHES = {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0", "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}


class DemoError(LadderError):
    """The demo cannot run, or did not show what it promises; the message says why."""


def run_demo(
    console: Console,
    num_ranks: int,
    num_layers: int | None,
    hf: str | None,
    as_json: bool = False,
) -> None:
    """Run the demo and print it on `console`.

    Args:
        num_ranks: processes to shard over.
        num_layers: how many layers the model gets, None for its configuration's own.
        hf: a local configuration of another causal LM, None for the small random Llama.
        as_json: print what was measured as JSON, and nothing else on stdout.

    Raises:
        DemoError: transformers is missing, the model is refused, or a rank failed.
    """
    if find_spec("transformers") is None:
        raise DemoError("the demo needs transformers: pip install 'ladderize[demo]'")
    if hf is not None and not Path(hf).exists():
        raise DemoError(f"--hf {hf}: no such file or folder")
    told = Console(stderr=True) if as_json else console
    with steps_on(told) as steps, tempfile.TemporaryDirectory(prefix="ladderize-demo-") as name:
        steps.begin("load torch")
        from ladderize.tools.demo import show  # here, so that loading torch shows too
        from ladderize.tools.demo.rank_work import STAGES, Outcome, Refusal, work
        from ladderize.tools.launch.ranks import RankFailed, launch

        steps.begin(f"start {num_ranks} ranks (torch's elastic launcher, gloo)")
        with follow(Path(name), num_ranks, STAGES, steps):
            try:
                args = (hf, num_layers, name)
                results = launch(work, args, num_ranks, Path(name), NO_GRAPH_CACHES)
            except RankFailed as error:
                raise DemoError(str(error)) from None
    refusals = [result for result in results if isinstance(result, Refusal)]
    if refusals:
        raise DemoError(refusals[0].reason)
    outcomes = [result for result in results if isinstance(result, Outcome)]
    off = show.ladder_error(outcomes)
    is_right = off <= show.MAX_ERROR  # not when it is NaN
    if as_json:
        print(json.dumps({"ok": is_right, **show.as_data(outcomes)}, indent=1))
    else:
        _show(console, outcomes, num_ranks)
    if not is_right:
        raise DemoError(f"the sharded ladder is off by {off:.1e}, more than {show.MAX_ERROR:.0e}")
    if not as_json:
        console.print("[bold green]demo OK[/]")


def _show(console: Console, outcomes: Sequence["Outcome"], num_ranks: int) -> None:
    from ladderize.tools.demo import show

    first = outcomes[0]
    console.print(
        f"\n{first.model}, {first.num_weights:,} random weights, on {num_ranks} ranks\n",
        highlight=False,
    )
    show.show_map(console, first.report)
    show.show_error(console, outcomes)
    show.show_orders(console, outcomes)
    show.show_next(console, first)
