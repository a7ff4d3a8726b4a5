"""What a step runs on, as data: links between ranks (links.toml) by name.

links.toml ── link.py: Link, seconds of a collective of so many bytes
"""

from ladderize.hardware.link import Link, known_links, link_of

__all__ = ["Link", "known_links", "link_of"]
