"""What came out: run folders as one table and one page.

runs = gather(["runs/mosa-0", "runs/mosa-1"])
print(markdown_table(compare(runs)))
write_report(["runs"], "report.html")
"""

from .gather import Run as Run
from .gather import gather as gather
from .gather import read_run as read_run
from .groups import Comparison as Comparison
from .groups import Group as Group
from .groups import compare as compare
from .mistakes import save_mistakes as save_mistakes
from .page import render as render
from .page import write_report as write_report
from .tables import json_rows as json_rows
from .tables import markdown_table as markdown_table
from .tables import terminal_table as terminal_table
