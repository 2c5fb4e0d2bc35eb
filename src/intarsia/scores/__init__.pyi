from .statistics import Statistics as Statistics
from .statistics import observing as observing
