"""The pictures of one concept: found in any folder, read as people store them, shown to the base model as it likes them."""
