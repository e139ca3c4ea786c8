"""What the kernels on a GPU stand on: Triton's launches and FFT; knows no operation."""
