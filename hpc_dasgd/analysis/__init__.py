"""Analysis of finished and running runs from their files: the run, its replay, its bounds. No MPI.

Reports, planning and the command line import it. A new quantity computed from the log of a run goes here, or into
`hpc_dasgd.theory` where it needs no files.
"""
