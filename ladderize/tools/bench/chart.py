"""The rows of a benchmark as a picture, with matplotlib.

speedup over the link's latency │ speedup over the batch │ communication: exposed, hidden
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladderize.tools.bench.record import ResultRow, Results
from ladderize.tools.pictures import refuse_picture, save_picture

STYLES = ("-", "--", ":", "-.")
COLORS = {
    "standard": "#8a8f98",
    "written": "#d9892b",
    "ladder": "#2f6fdb",
    "free": "#8fb4f0",
    "parallel": "#7a4fbf",
    "bound": "#2f9e62",
}
OTHER = "#b5486b"
"""Color of a desync residual."""


def draw(results: Results, path: Path, force: bool = False) -> None:
    """Draw `results` to `path`.

    Raises:
        LadderError: matplotlib is missing, or `path` exists or has an unknown suffix.
    """
    refuse_picture(path, force)
    from matplotlib.figure import Figure

    views = [view for view in (_over_latency, _over_batch, _communication) if view(results, None)]
    figure = Figure(figsize=(5.2 * max(len(views), 1), 4.2), layout="constrained")
    for i, view in enumerate(views):
        axes = figure.add_subplot(1, len(views), i + 1)
        axes.spines[["top", "right"]].set_visible(False)
        view(results, axes)
    figure.suptitle(_origin(results), fontsize=8, color="#666666")
    save_picture(figure, path, force)


def _origin(results: Results) -> str:
    machine = (
        results.machine["gpus"] or f"{results.machine['cpu']}, {results.machine['cores']} cores"
    )
    return f"{results.command}\n{machine}, torch {results.versions['torch']}"


def _over_latency(results: Results, axes: Any) -> bool:
    """Speedup over latency, a line for each variant and case."""
    latencies = [row.values.get("link_latency_s") for row in results.rows]
    places = [None if latency is None else latency * 1e6 for latency in latencies]
    return _speedups(results, axes, "link", "latency of a collective, µs", places)


def _over_batch(results: Results, axes: Any) -> bool:
    """Speedup over batch, a line for each variant, length and link."""
    places = [row.key.get("batch") for row in results.rows]
    return _speedups(results, axes, "batch", "batch", places)


def _speedups(results: Results, axes: Any, varying: str, label: str, places: Sequence[Any]) -> bool:
    """Draw lines of speedup over the key `varying`, whose values are in `places` (number or None).

    Returns whether there is a line to draw; without `axes` it draws nothing.
    """
    lines: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for row, x in zip(results.rows, places, strict=True):
        ratio = row.values.get("standard_ratio")
        if x is not None and ratio and row.key["variant"] != "standard":
            rest = (f"{v}" for k, v in row.key.items() if k not in ("variant", varying))
            lines[str(row.key["variant"]), ", ".join(rest)][x] = 1 / ratio
    if axes is None:
        return any(len(points) > 1 for points in lines.values())
    cases = list(dict.fromkeys(case for _, case in lines))
    for (variant, case), points in lines.items():
        text = variant if len(cases) == 1 else f"{variant}, {case}"
        style = STYLES[cases.index(case) % len(STYLES)]
        xs, ys = zip(*sorted(points.items()), strict=True)
        axes.plot(xs, ys, style, marker="o", color=COLORS.get(variant, OTHER), label=text)
    axes.axhline(1, color=COLORS["standard"], linewidth=1)
    axes.set(xlabel=label, ylabel="speedup over standard")
    axes.legend(frameon=False, fontsize=8)
    return True


def _communication(results: Results, axes: Any) -> bool:
    """Bars: exposed below, hidden above."""
    rows = [row for row in results.rows if row.values.get("communicating_s") is not None]
    if not rows or axes is None:
        return bool(rows)
    exposed = [1e3 * (row.values["exposed_s"] or 0) for row in rows]
    whole = [1e3 * (row.values["communicating_s"] or 0) for row in rows]
    hidden = [max(0.0, w - e) for w, e in zip(whole, exposed, strict=True)]
    places = range(len(rows))
    colors = [COLORS.get(str(row.key["variant"]), OTHER) for row in rows]
    axes.bar(places, exposed, color=colors, label="exposed")
    axes.bar(
        places, hidden, bottom=exposed, color="none", edgecolor=colors, hatch="//", label="hidden"
    )
    axes.set_xticks(places, _names(rows), rotation=90, fontsize=7)
    axes.set(ylabel="communication of a step, ms")
    axes.set_title("solid: exposed; hatched: hidden", fontsize=9)
    return True


def _names(rows: Sequence[ResultRow]) -> list[str]:
    """Labels that tell the rows apart."""
    values: dict[str, set[Any]] = defaultdict(set)
    for row in rows:
        for name, value in row.key.items():
            values[name].add(value)
    kept = [name for name, found in values.items() if len(found) > 1 or name == "variant"]
    return [", ".join(f"{row.key[name]}" for name in kept if name in row.key) for row in rows]
