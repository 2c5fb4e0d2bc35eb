"""What is added? One file per published cell."""

from .bottleneck import Bottleneck as Bottleneck
from .bottleneck import BottleneckCell as BottleneckCell
from .lora import Lora as Lora
from .lora import LoraCell as LoraCell
from .ssf import Ssf as Ssf
from .ssf import SsfCell as SsfCell
