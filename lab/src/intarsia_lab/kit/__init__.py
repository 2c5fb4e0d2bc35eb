"""The parts of every experiment of the laboratory."""

from .rates import ArmRate as ArmRate
from .rates import Rates as Rates
from .study import Effect as Effect
from .study import Report as Report
from .study import Result as Result
from .study import Study as Study
from .study import over_items as over_items
from .study import word_of as word_of
from .worst import worst_of as worst_of
