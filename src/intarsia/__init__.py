"""Sparse and modular adaptation of pretrained PyTorch models.

model = intarsia.adapt(model, intarsia.Mosa(experts=4))
intarsia.fit(model, train, val, epochs=20)
stock = intarsia.fold(model)
"""

from .core.exports import exports
from .core.with_peft import register as _register

_register()
_OLD = {"Bi": "methods.BiAdapter", "Dts": "routers.EvoMoe", "Sparsity": "routers.MoeX"}

__getattr__, __dir__, __all__ = exports(__name__, __file__, _OLD)
