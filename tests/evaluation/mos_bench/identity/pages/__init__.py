"""What a run writes: rows, tables in Markdown, plots and contact sheets."""
