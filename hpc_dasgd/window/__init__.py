"""Memory that ranks show each other, in windows of MPI.

`memory` has the MPI calls, `publication` what is read, `model` what is accumulated into, `board` small
values that take the place of collectives.
"""
