"""Fused models on disk: written, published, exported to other formats."""
