"""Turn a changed model into a stock one, or write it as a file: fold, export, pack."""
