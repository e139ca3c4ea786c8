"""Audio files: what their headers promise, decoding, flaws."""
