"""Scores of drawings: image features, references, and claims of prompts."""
