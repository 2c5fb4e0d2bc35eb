"""Changes of single weights, to apply, add and send around."""
