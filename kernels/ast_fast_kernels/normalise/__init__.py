"""Normalised, masked and padded features in one pass: `api` is the door."""
