"""The base class of graph passes with a `uuid` for Inductor's caches.

Importing this file imports Inductor. Seen in torch 2.11, 2.13 and 2.15.
"""

from torch._inductor.custom_graph_pass import CustomGraphPass

__all__ = ["CustomGraphPass"]
