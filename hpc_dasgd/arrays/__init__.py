"""Arithmetic on arrays of NumPy, CuPy and other array libraries, and the devices that compute with them.

Every room may import it; it imports nothing but `hpc_dasgd.errors`. `gpu` is the only module of the package that
imports CuPy. A function that must run on both a processor and a GPU goes into `arithmetic`.
"""
