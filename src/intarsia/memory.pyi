from .areas.memory.mac import Mac as Mac
from .areas.memory.sparsey_net import SparseyNet as SparseyNet
