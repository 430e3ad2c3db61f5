"""Measurements and the demo: the one package that may use both sides."""
