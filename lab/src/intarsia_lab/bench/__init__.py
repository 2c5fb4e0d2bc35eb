"""The benchmark: suites of tasks, methods on equal terms, and statistics over both."""

from .publish import write as write
from .report.records import RunResult as RunResult
from .report.summary import Summary as Summary
from .report.summary import tables as tables
