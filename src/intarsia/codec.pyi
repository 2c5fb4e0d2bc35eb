from .areas.codec.codec import Recombiner as Recombiner
from .areas.codec.recombiner import RecombinerSettings as RecombinerSettings
