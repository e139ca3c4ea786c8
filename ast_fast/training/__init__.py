"""One fold: its batches, its steps, its tests, and what is kept of it."""
