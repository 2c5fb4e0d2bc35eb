"""The benchmark: suites of tasks, methods on equal terms, and statistics over both."""

from ..results.suites.records import RunResult as RunResult
from ..results.suites.summary import Summary as Summary
from ..results.suites.summary import tables as tables
from .publish import write as write
