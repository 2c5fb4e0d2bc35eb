"""What pruning did: folders of `intarsia sparsify` as one table and one page."""

from .page import gather as gather
from .page import table_of as table_of
from .page import write_page as write_page
