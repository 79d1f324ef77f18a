"""The command line: arguments, commands, exit status, batch scripts for SLURM.

Nothing imports it. A new command is a function in `commands` and its arguments in `arguments`.
"""
