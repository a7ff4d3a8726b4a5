"""Time variants in turns on one link, on one rank.

repeat 0   standard  written  ladder  parallel  bound
repeat 1   written  ladder  parallel  bound  standard        each begins together on all ranks
repeat 2   …
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

from ladderize.testing.verify.locate import relative_error
from ladderize.tools.bench.bench_settings import FREE
from ladderize.tools.bench.variants import BenchVariant
from ladderize.tools.emulation import EmulatedGroup, Exposure
from ladderize.tools.predict.timeline import read_step


@dataclass(frozen=True)
class ModelCall:
    """The call that is timed, the same for all variants.

    Attributes:
        reset: restores a module's state before each call.
        device: "cpu" or "cuda".
        is_training: whether a step also computes the gradients of the parameters.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    reset: Callable[[nn.Module], None] = lambda _: None
    device: str = "cpu"
    is_training: bool = False

    def run(self, module: Callable[..., Any]) -> Any:
        """Run one step and return its outputs."""
        output = module(*self.args, **self.kwargs)
        if self.is_training:
            loss = sum(t.float().square().mean() for t in _floating_point(output))
            assert isinstance(loss, Tensor), "the model returns no floating-point tensor"
            loss.backward()  # type: ignore[no-untyped-call]
        return output

    def begin(self, module: nn.Module) -> None:
        """Clear the gradients of `module` and restore its state before a step."""
        module.zero_grad()
        self.reset(module)

    def results(self, output: Any, module: nn.Module) -> Tensor:
        """The results of a step as one vector: outputs, then gradients in the order of names."""
        parameters = sorted(module.named_parameters()) if self.is_training else ()
        return outputs_of((output, [parameter.grad for _, parameter in parameters]))


@dataclass
class Samples:
    """Measurements of one variant on one link, on one rank. Lists have an entry per repeat.

    Attributes:
        seconds: step times.
        exposed, communicating: exposed and total communication times, in seconds.
        late_peers: seconds spent waiting for stragglers; not exposed.
        kinds: exposure by kind of collective, recorded by the emulated link.
        num_slow: number of collectives in which gloo was slower than the link.
        error: largest difference from the expected output over all runs including warmup, over
            the largest expected value. None if nothing is expected.
    """

    seconds: list[float] = field(default_factory=list)
    exposed: list[float] = field(default_factory=list)
    communicating: list[float] = field(default_factory=list)
    late_peers: list[float] = field(default_factory=list)
    kinds: list[dict[str, Exposure]] = field(default_factory=list)
    num_slow: int = 0
    error: float | None = None


def measure(
    variants: Sequence[BenchVariant],
    expected: Mapping[str, Tensor],
    call: ModelCall,
    repeats: int,
    warmup: int,
    group: EmulatedGroup | None = None,
) -> dict[str, Samples]:
    """Run every variant `warmup + repeats` times, in turns.

    Args:
        expected: outputs by variant, as `outputs_of` flattens them.
        group: emulated group with `link` set, whose records give the exposed time.
    """
    link = FREE if group is None else group.link
    found = {variant.name: Samples() for variant in variants}
    for repeat in range(-warmup, repeats):
        first = repeat % len(variants)
        for variant in (*variants[first:], *variants[:first]):
            samples = found[variant.name]
            if group is not None:
                group.clear()
                group.link = FREE if variant.is_free else link
            seconds, output = timed(variant, call)
            if variant.name in expected:
                off = relative_error(output, expected[variant.name])
                samples.error = max(off, samples.error or 0.0)
            if repeat < 0:
                continue
            samples.seconds.append(seconds)
            if group is not None:
                exposure = Exposure.of(group.transfers)
                samples.exposed.append(exposure.exposed)
                samples.communicating.append(exposure.total)
                samples.late_peers.append(exposure.late_peer)
                samples.kinds.append(Exposure.by_kind(group.transfers))
                samples.num_slow += exposure.num_slow
    if group is not None:
        group.link = link
    return found


def timed(variant: BenchVariant, call: ModelCall) -> tuple[float, Tensor]:
    """Time one step; return its seconds and results. On CUDA, device events mark both ends."""
    call.begin(variant.module)
    if dist.is_initialized():
        dist.barrier()
    if call.device == "cpu":
        started = time.perf_counter()
        output = call.run(variant.compiled)
        seconds = time.perf_counter() - started
    else:
        begin, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        torch.cuda.synchronize()
        begin.record()
        output = call.run(variant.compiled)
        end.record()
        torch.cuda.synchronize()
        seconds = begin.elapsed_time(end) / 1000
    return seconds, call.results(output, variant.module)


def outputs_of(output: Any) -> Tensor:
    """The floating-point tensors in `output`, as one vector."""
    return torch.cat([t.detach().double().flatten() for t in _floating_point(output)])


def _floating_point(output: Any) -> list[Tensor]:
    tensors = (leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
    return [tensor for tensor in tensors if tensor.is_floating_point()]


# ---- one more run, under the profiler


def peak_bytes(variant: BenchVariant, call: ModelCall) -> int:
    """Peak memory of a step above what was allocated at its start, in bytes."""
    if call.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        timed(variant, call)
        return torch.cuda.max_memory_allocated() - before
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        _trace(variant, call, path, profile_memory=True)
        events = json.loads(path.read_text())["traceEvents"]
    changes = [e["args"] for e in events if e.get("name") == "[memory]"]
    if not changes:
        return 0
    before = int(changes[0]["Total Allocated"]) - int(changes[0]["Bytes"])
    return max(int(change["Total Allocated"]) for change in changes) - before


def traced(variant: BenchVariant, call: ModelCall, path: Path | None = None) -> Samples:
    """Exposed and total communication of one step, from its trace, which is kept at `path`."""
    with tempfile.TemporaryDirectory() as folder:
        path = path or Path(folder) / "trace.json"
        _trace(variant, call, path)
        step = read_step(path, variant.name)
    return Samples(exposed=[step.exposed_seconds], communicating=[step.communication.seconds])


def _trace(variant: BenchVariant, call: ModelCall, path: Path, **options: Any) -> None:
    activities = [ProfilerActivity.CPU]
    if call.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, **options) as prof:
        timed(variant, call)
    prof.export_chrome_trace(str(path))
