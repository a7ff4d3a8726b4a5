"""Emulate eight GPUs on one: rank 0's shard, with a kernel in place of each transfer.

    python bench/gpu_stand_in.py --model bench/models/llama-70b.json --link nvlink-8 --batch 4

Random weights, static KV caches, Inductor, one CUDA graph per step. Each all-reduce is a kernel on
its own stream that lasts as long as the link takes for its bytes, and occupies `--sms` SMs
(bench/stand_in.py). The bound is the standard step captured while transfers
take no time. Steps of all variants alternate and are timed by CUDA events.

Without a GPU, `--device cpu --layers 2 --hidden 64` runs everything except the kernel: transfers
then take no time, and the numbers mean nothing.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from paper_table import table
from rank_shard import Phase, Weights, make_step
from rich.console import Console
from rich.table import Table
from stand_in import KernelLane, LaneWithoutKernel, stand_in
from step_times import Timed, check_kernel, time_on_cpu, time_on_cuda
from transformers import LlamaConfig

from ladderize.config.hardware.link import Link, link_of
from ladderize.report.files import refuse_file
from ladderize.tools.bench.paired import step_values
from ladderize.tools.bench.record import Key, ResultRow, Results, Values


@dataclass(frozen=True)
class Variant:
    """How a step differs from the standard one."""

    is_parallel: bool = False
    staleness: int = 0
    is_ours: bool = False
    is_silent: bool = False


VARIANTS = {
    "standard": Variant(),
    "written": Variant(staleness=1),  # waits where a person would write them, compiled unchanged
    "ladder": Variant(staleness=1, is_ours=True),
    "parallel": Variant(is_parallel=True),
    "bound": Variant(is_silent=True),
}
NUMBERS = ("step", "quartiles apart", "exposed", "tokens/s", "speedup", "paper", "its speedup")


@dataclass(frozen=True)
class Turns:
    """Alternating steps of all variants.

    Attributes:
        key: key of the rows, without the variant.
        seconds: times of each variant, by repeat.
        communication: duration of the transfers of one step, in seconds.
        memory: `peak_bytes`, if known.
    """

    key: Key
    seconds: Mapping[str, Sequence[float]]
    communication: Mapping[str, float]
    memory: Values

    def rows(self) -> Iterator[ResultRow]:
        for name in self.seconds:
            values = step_values(name, self.seconds) | self._exposure(name)
            yield ResultRow({"variant": name, **self.key}, {**values, **self.memory})

    def _exposure(self, name: str) -> dict[str, float | None]:
        """Step time minus the bound; None for parallel blocks, whose compute differs."""
        communication = self.communication[name]
        found: dict[str, float | None] = {"communicating_s": communication}
        if "bound" not in self.seconds or name == "parallel":
            return found
        pairs = zip(self.seconds[name], self.seconds["bound"], strict=True)
        exposed = statistics.median(own - bound for own, bound in pairs)
        hidden = 1 - exposed / communication if communication else None
        return found | {"exposed_s": exposed, "hidden_fraction": hidden}


def measure(
    options: argparse.Namespace, config: LlamaConfig, phase: Phase, weights: Weights, group
) -> Turns:
    torch._dynamo.reset()  # else the shapes of the previous phase make this one's dynamic
    on_cuda = options.device == "cuda"
    time_it = time_on_cuda if on_cuda else time_on_cpu
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    steps: dict = {}
    timed: dict[str, Timed] = {}
    for name in options.variants:
        variant = VARIANTS[name]
        net = {
            "is_parallel": variant.is_parallel,
            "staleness": variant.staleness,
            "is_ours": variant.is_ours,
        }
        how = {"lowering": options.lowering, "shard_vocabulary": options.shard_vocabulary}
        made = tuple(net.values())
        if made not in steps:
            print(f"{phase.name}, batch {phase.batch}: compiling {name}", file=sys.stderr)
            steps[made] = make_step(config, phase, weights, **net, **how)
        timed[name] = time_it(*steps[made], group, variant.is_silent)
    if options.traces:
        for name, one in timed.items():
            write_trace(
                one, options.traces, f"{options.model.stem}-{phase.name}-{phase.batch}-{name}"
            )
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(options.repeats):
        for name, one in timed.items():
            seconds[name].append(one.seconds())
    return Turns(
        {"phase": phase.name, "batch": phase.batch, "length": options.prompt},
        seconds,
        {name: one.communication for name, one in timed.items()},
        {"peak_bytes": float(torch.cuda.max_memory_allocated())} if on_cuda else {},
    )


def write_trace(one: Timed, folder: Path, name: str) -> None:
    """Write a torch.profiler trace of a step, for chrome://tracing or `ladderize plot`."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.profiler.profile() as profile:
        one.seconds()
    profile.export_chrome_trace(str(folder / f"{name}.json.gz"))


def generation(prefill: Turns, decode: Turns, new: int) -> Iterator[ResultRow]:
    """A prefill and `new` - 1 decode steps, as in the paper's tokens/s."""
    seconds = {
        name: [
            first + (new - 1) * step
            for first, step in zip(prefill.seconds[name], decode.seconds[name], strict=True)
        ]
        for name in prefill.seconds
    }
    key = {**prefill.key, "phase": "generation"}
    for name in seconds:
        values = step_values(name, seconds)
        tokens = int(key["batch"]) * new / statistics.median(seconds[name])
        yield ResultRow({"variant": name, **key}, {**values, "tokens_per_s": tokens})


def paper_rows() -> dict[tuple[str, int], float]:
    """Tokens/s of Llama-3 70B on 8 H100 with NVLink, by variant and batch."""
    rows = [row for row in table() if (row.link, row.ranks) == ("nvlink", 8)]
    return {(name, row.batch): speed for row in rows for name, speed in row.speeds.items()}


def table_of(rows: tuple[ResultRow, ...], title: str, paper: dict[tuple[str, int], float]) -> Table:
    table = Table(title=title)
    for column in ("phase", "batch", "variant"):
        table.add_column(column)
    for column in (
        "step",
        "± middle half",
        "exposed",
        "tokens/s",
        "speedup",
        "paper",
        "its speedup",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        if "variant" not in row.key:  # a transfer alone
            continue
        variant, batch, values = row.key["variant"], row.key["batch"], row.values
        known = paper if row.key["phase"] == "generation" else {}
        base = known.get(("standard", batch))
        told, ratio = known.get((variant, batch)), values.get("standard_ratio")
        table.add_row(
            row.key["phase"],
            str(batch),
            variant,
            *(milliseconds(values.get(f"{name}_s")) for name in ("median", "quartiles", "exposed")),
            shown(values.get("tokens_per_s"), "{:.2f}"),
            shown(1 / ratio if ratio else None, "{:.3f}"),
            shown(told, "{:.2f}"),
            shown(told / base if told and base else None, "{:.3f}"),
        )
    return table


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3f} ms"


def shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def config_of(options: argparse.Namespace) -> LlamaConfig:
    """The configuration in the file, shrunk on request to heads of size 8, one per rank."""
    config = LlamaConfig.from_json_file(options.model)
    data = config.to_dict() | {"dtype": getattr(torch, options.dtype)}
    if options.layers:
        data["num_hidden_layers"] = options.layers
    if options.hidden:
        heads = options.hidden // 8
        data |= {"hidden_size": options.hidden, "intermediate_size": 2 * options.hidden}
        data |= {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 8}
        data |= {"vocab_size": 256}
    return LlamaConfig(**data)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models = Path(__file__).parent / "models"
    add = parser.add_argument
    add("--model", type=Path, default=models / "llama-70b.json", help="a config.json of a Llama")
    add("--layers", type=int, help="number of its layers to keep")
    add("--hidden", type=int, help="shrink it to this hidden size")
    add("--link", default="nvlink-8", help="a link of ladderize/config/hardware/links.toml")
    add("--latency-us", type=float, help="replaces the link's latency")
    add("--bandwidth", type=float, help="GB/s; replaces the link's bandwidth")
    add("--sms", type=int, default=1, help="SMs that a transfer takes from compute")
    add("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    add("--prompt", type=int, default=1024)
    add("--new", type=int, default=512, help="generated tokens; the caches have room for them")
    add("--phases", nargs="+", choices=("prefill", "decode"), default=["prefill", "decode"])
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    add("--shard-vocabulary", action=argparse.BooleanOptionalAction, default=True)
    add("--repeats", type=int, default=25)
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--lowering", choices=("inductor", "aot_eager"), default="inductor")
    add("--json", type=Path, help="file for the results, written after each batch")
    add("--traces", type=Path, help="folder for a torch.profiler trace of each step")
    return parser.parse_args()


def link_from(options: argparse.Namespace) -> Link:
    known = link_of(options.link)
    latency = known.latency if options.latency_us is None else options.latency_us * 1e-6
    bandwidth = known.bandwidth if options.bandwidth is None else options.bandwidth * 1e9
    is_known = (latency, bandwidth) == (known.latency, known.bandwidth)
    return Link(known.name if is_known else "given", known.ranks, latency, bandwidth)


def run(options: argparse.Namespace) -> Iterator[Results]:
    """Yield the results so far, after each batch."""
    config, link = config_of(options), link_from(options)
    device = torch.device(options.device)
    on_cuda = device.type == "cuda"
    lane = KernelLane(device, options.sms) if on_cuda else LaneWithoutKernel()
    rows: list[ResultRow] = list(check_kernel(lane, options.repeats)) if on_cuda else []
    room = options.prompt + options.new
    model = f"{options.model.stem}, {config.num_hidden_layers} layers of {config.hidden_size}"
    same = {"model": model, "link": str(link), "sms": options.sms, "device": options.device}
    command = " ".join(["python", "bench/gpu_stand_in.py", *sys.argv[1:]])
    with stand_in(link, lane, device.type) as (mesh, group), torch.no_grad():
        weights = Weights(mesh)
        for batch in options.batch:
            phases = {
                "prefill": Phase("prefill", batch, options.prompt, 0, room),
                "decode": Phase("decode", batch, 1, options.prompt, room),
            }
            turns = {
                name: measure(options, config, phases[name], weights, group)
                for name in options.phases
            }
            weights.forget_caches()
            rows += (row for each in turns.values() for row in each.rows())
            if len(turns) == len(phases):
                rows += generation(turns["prefill"], turns["decode"], options.new)
            yield Results(command, tuple(ResultRow({**r.key, **same}, r.values) for r in rows))


def main() -> None:
    options = arguments()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "torch sees no CUDA device. To test without one: --device cpu --layers 2 --hidden 64"
        )
    if options.json:
        refuse_file(options.json, force=True)  # before an hour of measuring, not after it
    for results in run(options):
        if options.json:
            results.write(options.json, force=True)
    is_70b = options.model.stem == "llama-70b" and not (options.layers or options.hidden)
    for row in results.rows:
        if "asked_us" in row.key:
            found = milliseconds(row.values["median_s"])
            print(f"a transfer of {row.key['asked_us']:g} µs alone lasts {found}")
    title = "one device in place of 8" if options.device == "cuda" else "dry run, no transfers"
    Console(width=140).print(table_of(results.rows, title, paper_rows() if is_70b else {}))


if __name__ == "__main__":
    main()
