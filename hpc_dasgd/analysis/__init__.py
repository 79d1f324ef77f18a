"""Analysis of finished and running runs from their files: the run, its replay, its convergence bounds. Needs no MPI.

Reports, planning and the command line import this room. A new quantity that is computed from the log of a run goes
here, or into `hpc_dasgd.theory` if it needs no files.
"""
