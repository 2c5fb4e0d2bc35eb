"""Limit each attention head to its own span: masks, caches and the choice of spans."""
