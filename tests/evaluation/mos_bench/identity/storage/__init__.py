"""Keep computed results, and share the work among processes."""
