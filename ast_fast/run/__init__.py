"""A run around its folds: folder, facts, kernels, checks, endings, and several runs together."""
