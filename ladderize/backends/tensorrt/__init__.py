"""The TensorRT lowering: cut the graph into islands of compute, build an engine for each."""
