"""A language model that reads pictures and sounds through connectors."""
