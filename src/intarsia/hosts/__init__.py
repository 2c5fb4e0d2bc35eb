"""Model surgery: where cells go in a host model, and how they get there."""

from .adapt import adapt as adapt
from .adapt import load as load
