"""Other people's files as concepts: LoRA of kohya, A1111, diffusers and PEFT, textual inversion, the paper's own checkpoints."""
