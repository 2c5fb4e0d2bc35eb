from .models.memory.mac import Mac as Mac
from .models.memory.sparsey_net import SparseyNet as SparseyNet
