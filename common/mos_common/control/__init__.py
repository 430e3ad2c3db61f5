"""Spatial control: T2I-Adapters and ControlNets, for a whole drawing or a region of it."""
