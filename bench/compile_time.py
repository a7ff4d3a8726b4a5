"""Time of ladderize's own passes and of the whole compilation, over depth.

    python bench/compile_time.py [--layers 32 126] [--ranks 2] [--lowering inductor] [--json FILE]

A Llama of tiny width is compiled for one rank of `--ranks` (a fake process group stands in for the
others; nothing is run), each depth in its own process with cold caches. Seconds are CPU time of
that process: they exclude other programs on the machine and the C++ compilers that Inductor starts.
The garbage collector is counted separately: a collection takes 0.3 s, in whichever step is running
then.
"""

import argparse
import gc
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch


class Clock:
    """CPU seconds of this process, without its garbage collector."""

    def __init__(self, is_wall: bool) -> None:
        self.collecting = self._started = 0.0
        self._time = time.perf_counter if is_wall else time.process_time
        gc.callbacks.append(self._see)

    def _see(self, phase: str, _: object) -> None:
        if phase == "start":
            self._started = self._time()
        else:
            self.collecting += self._time() - self._started

    def __call__(self) -> float:
        return self._time() - self.collecting


class PassTimes(logging.Handler):
    """Sums the seconds of the passes from the lines of the logger "ladderize"."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)

    def emit(self, record: logging.LogRecord) -> None:
        name, _, seconds = record.args
        self.seconds[name] += seconds


def measure(num_layers: int, num_ranks: int, lowering: str, is_wall: bool) -> dict[str, object]:
    """Compile once and time it, in a process that does nothing else."""
    import torch.distributed as dist
    from tiny_llama import tiny_llama
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    time.perf_counter = clock = Clock(is_wall)  # times the passes
    times = PassTimes()
    logger = logging.getLogger("ladderize")
    logger.addHandler(times)
    logger.setLevel(logging.INFO)
    torch.set_num_threads(1)
    options: dict[str, object] = {"lowering": lowering}
    if num_ranks > 1:
        dist.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())
        options["mesh"] = init_device_mesh("cpu", (num_ranks,))
    model = tiny_llama(num_layers)
    ids = torch.zeros(2, 8, dtype=torch.int64)
    compiled = torch.compile(model, backend="ladderize", fullgraph=True, options=options)
    started = time.perf_counter()
    with torch.no_grad():
        compiled(input_ids=ids, use_cache=False)
    whole = time.perf_counter() - started
    return {
        "layers": num_layers,
        "ranks": num_ranks,
        "whole_s": round(whole, 2),
        "collector_s": round(clock.collecting, 2),
        "passes_s": round(sum(times.seconds.values()), 3),
        "share": round(sum(times.seconds.values()) / whole, 4),
        "by_pass": {name: round(seconds, 3) for name, seconds in times.seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[32, 126])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--lowering", choices=["inductor", "aot_eager"], default="inductor")
    parser.add_argument("--wall", action="store_true", help="elapsed time: C++ compilers count")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.layers[0], args.ranks, args.lowering, args.wall)))
        return
    results = []
    for num_layers in args.layers:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, __file__, "--here", "--layers", str(num_layers)]
            command += ["--ranks", str(args.ranks), "--lowering", args.lowering]
            command += ["--wall"] * args.wall
            ran = subprocess.run(
                command,
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
                check=True,
                capture_output=True,
                text=True,
            )
        results.append(json.loads(ran.stdout.splitlines()[-1]))
        print(json.dumps(results[-1]))
    growth = results[-1]["passes_s"] / results[0]["passes_s"]
    depth = results[-1]["layers"] / results[0]["layers"]
    print(f"passes grow {growth:.2f}x over {depth:.2f}x the layers")
    if args.json:
        machine = {"torch": torch.__version__, "machine": platform.platform()}
        args.json.write_text(json.dumps({**machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
