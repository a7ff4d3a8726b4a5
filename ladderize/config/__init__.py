"""The options that users give, each validated once."""
