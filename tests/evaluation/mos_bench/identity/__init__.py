"""`mos-bench identity`: the paper's tables and the honest ones, on concepts that the base never saw."""
