from .models.coding.bsc import BSC as BSC
from .models.coding.bsc import DSC as DSC
from .models.coding.bsc import TSC as TSC
from .models.coding.gsc import GSC as GSC
from .models.coding.mca import MCA as MCA
from .models.coding.mca import MMCA as MMCA
from .models.coding.mog import MoG as MoG
from .models.coding.mop import MoP as MoP
