"""Attention with a span for each head: which keys a head sees, and what is kept of them."""
