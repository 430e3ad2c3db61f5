"""What both sides mean by the same word."""
