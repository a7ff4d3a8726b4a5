"""`ladderize demo`: a sharded ladder on this machine, beside what plain `torch.compile` makes.

parent    launch.py starts the ranks, progress.py shows what they do, show.py prints
a rank    work.py; with models.py, survey.py, handwritten.py
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from ladderize.demo.progress import follow, steps_on


class DemoError(RuntimeError):
    """The demo cannot run, or did not show what it promises; the message says why."""


def run_demo(console: Console, num_ranks: int, num_layers: int | None, hf: str | None) -> None:
    """Run the demo and print it on `console`.

    Args:
        num_ranks: processes to shard over.
        num_layers: how many layers the model gets, None for its configuration's own.
        hf: a local configuration of another causal LM, None for the small random Llama.

    Raises:
        DemoError: transformers is missing, the model is refused, or a rank failed.
    """
    if find_spec("transformers") is None:
        raise DemoError("the demo needs transformers: pip install 'ladderize[demo]'")
    if hf is not None and not Path(hf).exists():
        raise DemoError(f"--hf {hf}: no such file or folder")
    with steps_on(console) as steps, tempfile.TemporaryDirectory(prefix="ladderize-demo-") as name:
        steps.begin("load torch")
        from ladderize.demo import launch, show  # here, so that loading torch shows too

        steps.begin(f"start {num_ranks} ranks (torch's elastic launcher, gloo)")
        with follow(Path(name), num_ranks, launch.STAGES, steps):
            try:
                results = launch.launch(hf, num_layers, num_ranks, Path(name))
            except launch.RankFailed as error:
                raise DemoError(str(error)) from None
    refusals = [result for result in results if isinstance(result, launch.Refusal)]
    if refusals:
        raise DemoError(refusals[0].reason)
    outcomes = [result for result in results if isinstance(result, launch.Outcome)]
    first = outcomes[0]
    console.print(
        f"\n{first.model}, {first.num_weights:,} random weights, on {num_ranks} ranks\n",
        highlight=False,
    )
    show.show_map(console, first.rows)
    show.show_error(console, outcomes)
    show.show_orders(console, outcomes)
    show.show_next(console, first)
    off = show.ladder_error(outcomes)
    if not off <= show.MAX_ERROR:  # also when it is NaN
        raise DemoError(f"the sharded ladder is off by {off:.1e}, more than {show.MAX_ERROR:.0e}")
    console.print("[bold green]demo OK[/]")
