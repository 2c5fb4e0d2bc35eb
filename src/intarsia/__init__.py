"""Sparse and modular adaptation of pretrained PyTorch models."""
