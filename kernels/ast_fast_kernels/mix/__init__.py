"""Rotated, scaled and summed clips in one pass: `api` is the door."""
