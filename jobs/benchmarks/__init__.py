"""Benchmarks and long experiments: programs that measure the package and write their results to ``results/``.

========================  ==============================================================================
``exchange``              Gradients per second of each exchange, bandwidth of one-sided reads. Needs ranks.
``stragglers``            Time and gradients to a target loss, by exchange, with slow ranks. Needs ranks.
``bounds``                The convergence bounds of ``docs/theory.md`` compared with measurements. Needs ranks.
``checkpoint``            Gradients per second with and without checkpoints. Needs ranks.
``many_ranks``            Repeated runs of many more ranks than cores: hangs, failures, accuracy.
``plan``                  Predictions of ``hpc-dasgd plan`` compared with measurements.
``staleness``             Time and memory that ``hpc-dasgd staleness`` takes for a large run.
``faults.harness``        Seeded trials that kill ranks, damage files and fill disks, then resume the run.
``faults.survive``        Which MPI and launcher options let the other ranks survive the death of one.
``gpu.benchmark``         Gradients, several ranks and copies on a GPU, compared with PyTorch.
========================  ==============================================================================

Run them from the root of the repository, those that need ranks under ``mpiexec``. The others start it themselves if
they use ranks::

    python -m jobs.benchmarks.NAME OUTPUT
    mpiexec -n N python -m mpi4py -m jobs.benchmarks.NAME OUTPUT

``--help`` describes the options. Most of them write ``OUTPUT.json`` with every sample and ``OUTPUT.md`` with medians;
``bounds`` and ``stragglers`` write several files into the folder OUTPUT and continue an interrupted series of runs.
``results/`` holds the outcomes that are in the repository.

Functions that several of them share are in ``common`` (arguments, samples taken in turns, tables, files, the machine)
and ``mpiexec`` (starting ranks). Importing this package sets the environment defaults of a launch, because BLAS reads
its number of threads when NumPy is imported.
"""

from hpc_dasgd.runtime import launcher

launcher.set_environment_defaults()
