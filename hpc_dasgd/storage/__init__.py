"""Files of a run, read and written without MPI: layout, logs of ranks, ``run.h5``, generations and checkpoints.

Training, analysis and the rooms above them may import it. A new column of the log is a line in `layout`; a new kind of
file is a module here. ``docs/file-format.md`` describes the files for users.
"""
