"""Hot loops: one room a kernel family, each with its maths, a PyTorch path for the CPU and a Triton path for GPUs."""
