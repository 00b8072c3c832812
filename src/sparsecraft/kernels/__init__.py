"""The ground floor: exact selections on plain tensors, with a PyTorch and a numba back end."""
