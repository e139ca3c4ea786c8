"""The end of a run: figures, a page, and the check of its own kernels."""
