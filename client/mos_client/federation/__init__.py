"""Take part in a federation: enrol, answer rounds, download models."""
