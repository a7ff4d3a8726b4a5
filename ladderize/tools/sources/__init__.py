"""The models that the command line names: `model_names` finds one, `opened_models` opens it."""
