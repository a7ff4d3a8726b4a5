"""What `mesh=` takes around a graph: the parts of parameters and of caches, and gradients."""
