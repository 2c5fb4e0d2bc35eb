"""Kernels, a folder for each operation: a naive definition, fast implementations, the choice."""
