"""Fused models on disk: write, publish and export them."""
