"""Draw with a concept or a fused model."""
