"""Arithmetic on arrays of NumPy, CuPy and other array libraries, and the devices that compute with them.

Rooms on higher floors may import it; it imports nothing of the package but `hpc_dasgd.errors`. A function that must run
on both a processor and a GPU belongs in `arithmetic`, and what needs CuPy in `gpu`, the only module that imports it.
"""
