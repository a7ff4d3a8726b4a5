"""The TensorRT lowering: cut the graph into islands of compute and build an engine for each."""
