"""One runnable file for each paper's headline."""

from .records import Record as Record
from .records import run as run
from .records import studies as studies
from .records import study as study
