"""A run around its folds: folder, facts, kernels, checks, early ends, merged runs, seeds."""
