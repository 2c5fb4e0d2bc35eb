"""Pages of models that see and hear."""
