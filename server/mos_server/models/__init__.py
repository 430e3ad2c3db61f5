"""Fused models on disk: write and publish them."""
