"""The pictures of one concept: find, read, check and crop them for the base model."""
