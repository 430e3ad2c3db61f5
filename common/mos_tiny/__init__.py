"""The embedded base model `tiny`: a real, small text-to-image diffusion model in the Stable Diffusion 1.x layout."""
