"""Memory that ranks expose to each other in MPI windows.

Exchanges and the doctor import it; it is the only room that creates and uses them. `memory` has the MPI calls,
`publication` what others read, `model` what others accumulate into, `board` small values in place of a collective.
"""
