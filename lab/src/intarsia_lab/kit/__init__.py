"""What every experiment of the laboratory is made of."""

from .claim import Claim as Claim
from .claim import Report as Report
from .claim import Result as Result
