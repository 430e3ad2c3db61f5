"""Models to draw with, and requests for drawings."""
