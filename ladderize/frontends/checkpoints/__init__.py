"""The ladder entry in a checkpoint's config.json: reading, tracking and writing it."""
