"""The recurrent part as CUDA kernels, for bfloat16 on NVIDIA GPUs; see README.md."""
