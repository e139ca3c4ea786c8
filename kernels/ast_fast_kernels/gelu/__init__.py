"""A projection's bias and GELU in one pass: `api` is the door."""
