"""What the GPU kernels are built on: launches by Triton and an FFT; knows no operation."""
