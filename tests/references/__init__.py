"""Independent NumPy versions of what the package computes in PyTorch."""
