"""Inspect a concept file: its content, and what it reveals about its pictures."""
