from .exchange import Meter as Meter
from .exchange import exchanged as exchanged
from .running import carry_out as carry_out
from .running import check_agreed as check_agreed
from .sharded import Sharded as Sharded
from .sharded import shard as shard
