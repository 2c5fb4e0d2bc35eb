"""Results of pruning: folders of `intarsia sparsify` as one table and one page."""

from .page import gather as gather
from .page import report_of as report_of
from .page import table_of as table_of
