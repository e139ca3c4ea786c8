"""Resampling: waveforms at another sample rate."""
