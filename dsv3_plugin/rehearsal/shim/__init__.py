"""A CUDA runtime without a GPU: two C files, compiled once and preloaded into a rehearsed rank."""
