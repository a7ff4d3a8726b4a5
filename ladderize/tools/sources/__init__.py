"""MODEL on the command line: `model_names` finds it, `opened_models` opens it."""
