from .areas.coding.bsc import BSC as BSC
from .areas.coding.bsc import DSC as DSC
from .areas.coding.bsc import TSC as TSC
from .areas.coding.gsc import GSC as GSC
from .areas.coding.mca import MCA as MCA
from .areas.coding.mca import MMCA as MMCA
from .areas.coding.mog import MoG as MoG
from .areas.coding.mop import MoP as MoP
