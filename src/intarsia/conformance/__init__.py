"""One check-suite for each kind of method, over the whole catalogue and usable from outside.

for name, check in check_adapter(MY_CARD):
    check()                                    # raises ConformanceError
"""

from .adapters import check_adapter as check_adapter
from .kinds import check as check
from .mixtures import check_mixture as check_mixture
from .models import check_model as check_model
from .routers import check_router as check_router
