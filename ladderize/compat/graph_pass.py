"""The base class of graph passes that Inductor's caches know by an identity.

A file of its own: importing it imports Inductor. Seen in torch 2.11, 2.13 and 2.15.
"""

from torch._inductor.custom_graph_pass import CustomGraphPass

__all__ = ["CustomGraphPass"]
