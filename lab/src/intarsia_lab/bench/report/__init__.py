"""Methods on the tasks of a suite: records, statistics, tables and page."""
