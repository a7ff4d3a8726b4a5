"""User options, each validated once."""
