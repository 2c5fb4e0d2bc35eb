"""How much does each weight matter? What layers saw, in one pass over calibration batches."""

from .statistics import Statistics as Statistics
from .statistics import observing as observing
