"""Ways to draw several LoRAs in one picture without fusing them, written from their papers."""
