from .exchange import Meter as Meter
from .exchange import Wire as Wire
from .exchange import exchanged as exchanged
from .parallelism import Parallelism as Parallelism
from .parallelism import WholeModel as WholeModel
