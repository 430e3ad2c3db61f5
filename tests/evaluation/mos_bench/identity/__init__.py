"""`mos-bench identity`: identity, text alignment and drift on concepts that the base never saw."""
