"""`mos-bench influence`: what concepts and attackers do to others, and who is left out."""
