"""Scaled dot-product attention: `api` is the door, the rest are backends."""
