"""A minimal Audio Spectrogram Transformer, trained from scratch over fast FBANK kernels."""

import os

__version__ = "0.5.0"

SPINS = 3000
"""Times that an idle OpenMP thread of torch spins before it sleeps.

libgomp's default of 300,000 lasts milliseconds. If another program uses one of the cores, threads
that spin waste what it leaves, and training takes ten times as long or more (docs/log.md).
libgomp reads this when torch is first imported.
"""

CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""Environment variable, and the value with which cuBLAS gives the same bits each time.

cuBLAS reads it at a process's first product on CUDA. Source: NVIDIA's cuBLAS documentation,
"Results reproducibility"."""

os.environ.setdefault(*CUBLAS_WORKSPACE)
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
