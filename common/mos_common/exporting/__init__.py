"""Fused models and concepts in the formats of other tools."""
