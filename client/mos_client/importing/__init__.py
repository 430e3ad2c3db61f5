"""Import files of other tools: LoRA, textual inversion, and the paper's own checkpoints."""
