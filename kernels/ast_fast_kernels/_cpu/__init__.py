"""What the kernels on a CPU stand on: Numba, threads, vectors; knows no torch and no operation."""
