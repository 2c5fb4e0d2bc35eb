"""Results of runs: their folders as one table and one page.

runs = gather(["runs/lora-0", "runs/lora-1"])
print(markdown_table(comparison_of(runs)))
write_report(["runs"], "report.html")
"""

from .grouping import ChosenRun as ChosenRun
from .grouping import Comparison as Comparison
from .grouping import RunGroup as RunGroup
from .grouping import comparison_of as comparison_of
from .mistakes import save_mistakes as save_mistakes
from .page import report_of as report_of
from .page import write_report as write_report
from .reading import FinishedRun as FinishedRun
from .reading import gather as gather
from .reading import read_run as read_run
from .sentences import choice_sentence as choice_sentence
from .sentences import difference_sentence as difference_sentence
from .sentences import differences as differences
from .tables import json_choice as json_choice
from .tables import json_rows as json_rows
from .tables import markdown_table as markdown_table
