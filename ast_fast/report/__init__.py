"""The report of a run: report.json, its page and figures, and the check of the run's kernels."""
