"""Let a language model read pictures and sounds through connectors."""
