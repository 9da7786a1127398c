"""Checks of the CUDA kernels that need no GPU."""
