"""What was already computed, and which process computes what."""
