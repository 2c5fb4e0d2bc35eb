"""Classifiers of texts and of rows of numbers: converged probes on frozen features."""
