"""The benchmark: suites of tasks, methods on equal terms, and statistics over both."""

from .publish import write as write
from .results import Result as Result
from .summary import Summary as Summary
from .summary import tables as tables
