"""What came out: one sheet of paired differences, one table, one page frame."""
