"""Draw with a concept or a fused model from Python; `mos-client draw` draws through it, too."""
