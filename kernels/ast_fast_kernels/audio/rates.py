"""The sample rates that audio may have."""

SAMPLE_RATES = (100, 1_000_000)
"""Sample rates that a run may have, in Hz, and that a file may claim: any other is damage."""
