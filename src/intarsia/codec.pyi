from .models.codec.codec import Recombiner as Recombiner
from .models.codec.recombiner import RecombinerSettings as RecombinerSettings
