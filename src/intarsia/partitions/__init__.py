"""Which weights? The only home of top-k, N:M, row, block and random-disjoint selection."""

from .disjoint import random_disjoint as random_disjoint
