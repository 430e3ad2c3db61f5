"""What an operator clears away: what nobody needs any more, and what one person brought."""
