"""A projection by the fastest matrix product that torch has: `api` is the door."""
