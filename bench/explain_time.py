"""Time of `ladderize.explain` beyond Dynamo's tracing.

    python bench/explain_time.py [--layers 20 80] [--repeat 3]

A Llama of tiny width; each run has its own process. "tracing" is the time until Dynamo has the
graph (including its imports), "explain" the rest of the call, "print" the rendering of the report
as text.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any


def measure(num_layers: int) -> dict[str, object]:
    """Explain once and time it, in a process that does nothing else."""
    import torch
    from tiny_llama import tiny_llama
    from torch.fx import GraphModule

    import ladderize
    from ladderize.frontends import explain

    torch.set_num_threads(1)
    model = tiny_llama(num_layers)
    ids = torch.zeros(2, 8, dtype=torch.int64)
    traced: list[float] = []
    see = explain._Explainer.see_first

    def note_time(self: Any, gm: GraphModule, inputs: Sequence[Any]) -> Any:
        traced.append(time.perf_counter())
        return see(self, gm, inputs)

    explain._Explainer.see_first = note_time
    started = time.perf_counter()
    with torch.no_grad():
        report = ladderize.explain(model, input_ids=ids, use_cache=False)
    done = time.perf_counter()
    lines = str(report).count("\n") + 1
    printed = time.perf_counter()
    return {
        "layers": num_layers,
        "blocks": len(report.blocks),
        "tracing_s": round(traced[0] - started, 2),
        "explain_s": round(done - traced[0], 2),
        "print_s": round(printed - done, 2),
        "lines": lines,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[20, 80])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.layers[0])))
        return
    for num_layers in args.layers:
        for _ in range(args.repeat):
            ran = subprocess.run(
                [sys.executable, __file__, "--here", "--layers", str(num_layers)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            print(ran.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
