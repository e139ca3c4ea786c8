"""What the CPU kernels are built on: Numba, threads, vectors; knows no torch and no operation."""
