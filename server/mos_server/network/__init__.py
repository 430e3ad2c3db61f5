"""The two ports that participants reach: a gate to Flower's fleet API, and the `mos.v1` service."""
