"""FX graphs, whatever dialect: op words, dataflow, collectives, higher-order ops, FLOPs."""
