"""Following a running job from another shell by looking at its files. No MPI.

The command line imports it. `watcher` reads the files, `display` shows what it found.
"""
