"""Each concept's own spatial changes, beside a fused model: their files, and drawing with them."""
