"""The generators of documentation: `make generate` runs them."""
