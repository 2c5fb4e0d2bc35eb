from .methods.seuf.seuf import Seuf as Seuf
from .methods.seuf.seuf import unlearn as unlearn
from .sparse.swap.read_me import ReadMe as ReadMe
from .sparse.swap.read_me import extract as extract
