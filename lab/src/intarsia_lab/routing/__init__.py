"""The same small model under every router: trained alike, told of in the same terms.

[result] = cells([RouterTrial(VARIANTS["comet"], "austen", seed=0, budget="flops")])
"""

from .cell import work as work
from .contest import Contest as Contest
from .materials import material as material
from .report.findings import RouterResults as RouterResults
from .report.findings import RouterSheet as RouterSheet
from .report.findings import sheets_of as sheets_of
from .report.findings import tidy as tidy
from .report.publish import write as write
from .scale import PICTURES as PICTURES
from .scale import TEXT as TEXT
from .scale import Scale as Scale
from .table import BASELINE as BASELINE
from .table import VARIANTS as VARIANTS
from .table import chosen as chosen
from .trials import RouterTrial as RouterTrial
from .trials import cells as cells
from .variant import Expert as Expert
from .variant import Start as Start
from .variant import Variant as Variant
