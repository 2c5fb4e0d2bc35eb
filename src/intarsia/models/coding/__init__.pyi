from .bsc import BSC as BSC
from .bsc import DSC as DSC
from .bsc import TSC as TSC
from .gsc import GSC as GSC
from .mca import MCA as MCA
from .mca import MMCA as MMCA
from .truncated import Posterior as Posterior
