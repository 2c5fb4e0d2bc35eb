from .hosts.senses.answering import answer as answer
from .hosts.senses.answering import processor as processor
from .hosts.senses.auto import auto_model as auto_model
from .hosts.senses.modalities import Modalities as Modalities
from .methods.llava_mole import LlavaMole as LlavaMole
from .methods.slime import Slime as Slime
from .methods.uni_moe import UniMoe as UniMoe
