"""A minimal Audio Spectrogram Transformer, trained from scratch over fast FBANK kernels."""

import os

__version__ = "0.2.0"

SPINS = 3000
"""Turns that an idle OpenMP thread of torch waits at full speed before it sleeps.

libgomp's own 300,000 are milliseconds: where another program has one of the cores, its threads wait
for each other with what it leaves them, and training takes ten times as long and more
(docs/log.md). It reads this when torch is first imported.
"""

CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""Environment variable, and the value with which cuBLAS gives the same bits each time.

It is read at a process's first product on CUDA. Source: NVIDIA's cuBLAS documentation, "Results
reproducibility"."""

os.environ.setdefault(*CUBLAS_WORKSPACE)
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
