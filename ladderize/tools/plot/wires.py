"""Lines with rounded corners, and the heads of arrows."""

from collections.abc import Sequence
from itertools import pairwise

from ladderize.tools.plot.svg import Markup, tag

Point = tuple[float, float]

RADIUS = 6


def wire(points: Sequence[Point], kind: str = "wire") -> Markup:
    """A line along `points`, whose pieces run straight across or straight up and down."""
    path = [f"M{points[0][0]:g} {points[0][1]:g}"]
    for (before, corner), (_, after) in pairwise(pairwise(points)):
        enter, leave = _towards(corner, before), _towards(corner, after)
        path.append(f"L{enter[0]:g} {enter[1]:g}Q{corner[0]:g} {corner[1]:g} ")
        path.append(f"{leave[0]:g} {leave[1]:g}")
    path.append(f"L{points[-1][0]:g} {points[-1][1]:g}")
    return tag("path", class_=kind, d="".join(path))


def _towards(corner: Point, other: Point) -> Point:
    """The point `RADIUS` away from `corner` on the way to `other`, or halfway there."""
    x, y = other[0] - corner[0], other[1] - corner[1]
    distance = max(abs(x), abs(y))
    step = min(RADIUS, distance / 2) / distance if distance else 0
    return corner[0] + x * step, corner[1] + y * step


def arrow_right(x: float, y: float, kind: str = "head") -> Markup:
    return tag("path", class_=kind, d=f"M{x:g} {y:g}l-8 -4.5v9z")


def arrow_up(x: float, y: float, kind: str = "head") -> Markup:
    return tag("path", class_=kind, d=f"M{x:g} {y:g}l-4.5 8h9z")
