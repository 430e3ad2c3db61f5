"""The operator's side: admit, fuse, publish."""
