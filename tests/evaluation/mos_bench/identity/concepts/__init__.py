"""The measured concepts, prompts about them, and their tuned files."""
