"""Following a running job from another shell by reading its files. No MPI.

Only the command line imports it. `watcher` reads the status of a run from its files, `text` turns a status into
text, `display` shows it until the run ends. A new quantity is an attribute of `run_status.RunStatus`.
"""
