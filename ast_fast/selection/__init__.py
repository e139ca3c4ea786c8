"""Choosing settings on inner splits: candidates, their trials, scores and the table."""
