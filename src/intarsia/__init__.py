"""Sparse and modular adaptation of pretrained PyTorch models.

model = intarsia.adapt(model, intarsia.Lora(rank=8))
intarsia.fit(model, train, val, epochs=20)
stock = intarsia.fold(model)
"""

from .core import with_peft as _peft
from .core import with_transformers as _transformers
from .core.exports import exports

_peft.register()
_transformers.register()

__getattr__, __dir__, __all__ = exports(__name__, __file__)
