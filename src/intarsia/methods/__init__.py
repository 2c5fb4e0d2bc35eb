"""Papers that recombine the nouns."""

from .adamix import Adamix as Adamix
from .mosa import Mosa as Mosa
from .mosa import MosaCell as MosaCell
from .mosa import Mosl as Mosl
from .mosa import Official as Official
