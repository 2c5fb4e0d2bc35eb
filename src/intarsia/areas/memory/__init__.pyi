from .mac import Mac as Mac
from .overlap import adherence as adherence
from .overlap import basis_set_size as basis_set_size
from .overlap import overlap_maps as overlap_maps
from .overlap import similarity as similarity
from .sparsey_net import SparseyNet as SparseyNet
