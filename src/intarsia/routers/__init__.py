"""Which expert? Every router maps x (T, ...) to a Routing, and nothing else."""

from .random import RandomRouter as RandomRouter
from .random import passes as passes
from .random import random_routers as random_routers
from .random import redraw as redraw
