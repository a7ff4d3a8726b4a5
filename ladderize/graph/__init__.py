"""FX graphs of any dialect: op kinds, dataflow, collectives, higher-order ops, FLOPs."""
