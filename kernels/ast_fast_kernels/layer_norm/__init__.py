"""Residual addition and layer normalisation in one pass: `api` is the door."""
