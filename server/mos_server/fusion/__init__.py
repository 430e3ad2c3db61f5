"""Fusion: gradient fusion from second moments, and the other merge methods."""
