"""`draw`: what a ladder does to a model, as a page or a picture.

Report, Timeline ── draw.py ── page.py (page.css, page.js) ── .html
                       │          └ table.py
                       └────── picture.py ─────────────────── .svg, .png
                                  └ graph.py (layout.py), lanes.py: shared by both
"""

from ladderize.tools.plot.draw import draw

__all__ = ["draw"]
