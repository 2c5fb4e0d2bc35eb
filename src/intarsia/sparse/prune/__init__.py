"""Prune a model block by block: calibration, the choice of weights, folders of sparse models."""
