"""The Triton side of the kernels.

Imported only once a tensor is on a GPU: a CPU machine needs no Triton.
"""
