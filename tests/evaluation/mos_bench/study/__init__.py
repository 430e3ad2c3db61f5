"""The human study: a page of blind pairs, and the tally of what people answered."""
