"""Adapters: one file per published cell that is added to a layer."""

from .bottleneck import Bottleneck as Bottleneck
from .bottleneck import BottleneckCell as BottleneckCell
from .coded import CodedCell as CodedCell
from .coded import CodedLinear as CodedLinear
from .lora import Lora as Lora
from .lora import LoraCell as LoraCell
from .mos import Mos as Mos
from .mos import MosCell as MosCell
from .s2ft import S2ft as S2ft
from .s2ft import S2ftCell as S2ftCell
from .sparse import Sparse as Sparse
from .sparse import SparseCell as SparseCell
from .ssf import Ssf as Ssf
from .ssf import SsfCell as SsfCell
