"""ED-LoRA tuning and its relatives: parameters, loss, the loop, its memory, and when it is done."""
