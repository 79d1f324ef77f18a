"""Files of a run: their layout, logs of ranks, ``run.h5``, generations and checkpoints. No MPI.

Training, analysis and the rooms above them import it. A new log column is a line in `layout`; a new
kind of file is a module here.
"""
