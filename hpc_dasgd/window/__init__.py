"""Memory that ranks expose to each other in MPI windows.

Exchanges, training and the doctor import it; it is the only room that creates and uses windows. `memory` contains the
MPI calls, `publication` and `slots` the windows that other ranks read, `model` the windows that other ranks accumulate
into, and `board` small values that replace a collective call. A new kind of window is a module here, built on
`memory.WindowMemory`.
"""
