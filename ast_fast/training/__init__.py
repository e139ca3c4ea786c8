"""Training one fold: batches, steps, tests, and the files that keep its result."""
