from ..methods.llava_mole import LlavaMole as LlavaMole
from .answering import answer as answer
from .answering import processor as processor
from .auto import auto_model as auto_model
from .modalities import Modalities as Modalities
from .slime import Slime as Slime
from .uni_moe import UniMoe as UniMoe
