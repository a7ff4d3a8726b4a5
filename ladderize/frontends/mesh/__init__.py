"""The runtime of graphs sharded by `mesh=`: local parameters, local caches and gradients."""
