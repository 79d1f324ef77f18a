"""The command line: arguments, commands, exit status, batch scripts for SLURM.

No room imports it. A new command is a function in `commands`, and a function in `arguments` that adds its options.
"""
