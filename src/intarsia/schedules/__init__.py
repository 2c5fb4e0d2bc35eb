"""When does it change?"""

from .active import ActiveSchedule as ActiveSchedule
from .active import active_at as active_at
from .active import set_active as set_active
from .entries import Entries as Entries
from .entries import pull as pull
from .fitted import ByFit as ByFit
from .fitted import OnceFitted as OnceFitted
from .phases import Phase as Phase
from .phases import Phased as Phased
