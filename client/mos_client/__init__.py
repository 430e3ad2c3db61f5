"""The participant's side: tune a concept, take part in rounds, draw."""
