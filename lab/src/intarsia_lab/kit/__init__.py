"""The parts of every experiment of the laboratory."""

from .control import COUNTED as COUNTED
from .control import SIMULATED as SIMULATED
from .control import TIMED as TIMED
from .control import Control as Control
from .control import NoControl as NoControl
from .control import above as above
from .control import below as below
from .control import better_than_a_guess as better_than_a_guess
from .control import numbers as numbers
from .design import Design as Design
from .design import Missing as Missing
from .design import TableArm as TableArm
from .rates import ArmRate as ArmRate
from .rates import FixedRate as FixedRate
from .rates import Rates as Rates
from .study import Effect as Effect
from .study import Report as Report
from .study import Result as Result
from .study import Study as Study
from .study import UnknownEffect as UnknownEffect
from .study import Verdict as Verdict
from .study import over_items as over_items
from .study import seeds_needed as seeds_needed
from .worst import worst_interval as worst_interval
from .worst import worst_of as worst_of
