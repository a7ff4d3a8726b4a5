"""`draw`: what a ladder does to a model, as a page or a picture.

Report, Timeline ── draw.py ──┬── sheet.py: SVG and PNG by matplotlib ── .svg, .png
                              │      ├ block_graph.py (columns.py)
                              │      └ step_lanes.py
                              └── page.py (page.html.jinja) ──────────── .html
"""

from ladderize.tools.plot.draw import draw

__all__ = ["draw"]
