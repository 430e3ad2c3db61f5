"""One round: collect concepts, fuse them, have them scored, publish."""
