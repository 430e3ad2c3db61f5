"""Gradient fusion: second moments in, one low-rank change per layer out."""
