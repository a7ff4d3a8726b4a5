"""A checkpoint says in its config.json that it is a ladder: read, noted, and written."""
