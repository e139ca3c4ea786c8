"""A minimal Audio Spectrogram Transformer, trained from scratch over fast FBANK kernels."""

__version__ = "0.1.0"
