"""The output of a run: rows, tables in Markdown, plots and contact sheets."""
