"""What a concept file holds, and what it gives away."""
