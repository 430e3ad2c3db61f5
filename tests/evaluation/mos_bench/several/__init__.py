"""Several concepts in one picture: fused, with own changes, and by switching without fusing."""
