"""Result of a training run."""

from dataclasses import dataclass, field
from pathlib import Path

from hpc_dasgd.arrays.types import Floats


@dataclass(frozen=True, eq=False)
class Result:
    """Result of a training run.

    Attributes
    ----------
    parameters : ndarray, shape (n_params,), host memory
        Final parameters; the same bits on every rank, except with exchange `none`, where each rank has its own.
    run : Path
        The run directory.
    gradients : int
        Number of gradients that all ranks have computed together, over all generations of the run.
    seconds : float, s
        Training time until the last step of this rank, earlier generations of the run included.
    loss, accuracy : float
        Metrics of the final parameters on the evaluation set, measured by the lowest rank that is alive; nan if the
        objective does not measure them.
    drift : float
        Largest difference between a replica and the final parameters before the final synchronisation; see
        `exchange.interface.Settled`.
    stepsize : float
        Stepsize (learning rate) of the settings, or the one that was chosen from theory.
    stepsize_by : str
        ``"settings"``, or ``"bound A"`` or ``"bound B"``: the bound from which the stepsize was chosen.
    signal : str
        Name of the signal that stopped the run early, after every rank wrote a checkpoint; empty otherwise.
    missing : list of str
        Descriptions of what could not be written, on any rank; empty if everything was written.
    died : tuple of int
        Ranks that died while the others continued (``exchange.survive``), ascending.
    """

    parameters: Floats
    run: Path
    gradients: int
    seconds: float
    loss: float
    accuracy: float
    drift: float
    stepsize: float
    stepsize_by: str
    signal: str = ""
    missing: list[str] = field(default_factory=list)
    died: tuple[int, ...] = ()
