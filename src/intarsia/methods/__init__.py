"""Papers that recombine the nouns."""

from .adamix import Adamix as Adamix
from .bi import BiAdapter as BiAdapter
from .llava_mole import LlavaMole as LlavaMole
from .lt_sft import LtSft as LtSft
from .mixlora import MixLora as MixLora
from .mosa import Mosa as Mosa
from .mosa import MosaCell as MosaCell
from .mosa import Mosl as Mosl
from .mosa import Official as Official
from .poly import Poly as Poly
