"""From audio files to waveforms and features: headers, decoding, flaws, threads."""
