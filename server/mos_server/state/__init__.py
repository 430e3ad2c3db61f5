"""The operator's state folder: configuration, keys, the journal, kept concepts and models."""
