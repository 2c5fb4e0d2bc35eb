from .hosts.read_me import ReadMe as ReadMe
from .hosts.read_me import extract as extract
from .methods.seuf.seuf import Seuf as Seuf
from .methods.seuf.seuf import unlearn as unlearn
