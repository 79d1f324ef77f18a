"""Arguments of `train`, before they are validated."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.dataset import Dataset
from hpc_dasgd.objectives.interface import Objective


@dataclass(frozen=True, eq=False)
class RunRequest:
    """Arguments of `train`, which documents them."""

    config: Config | Mapping[str, object] | str | Path
    objective: Objective | None = None
    data: Dataset | str | Path | None = None
    overrides: tuple[str, ...] = ()
    run: str | Path | None = None
    resume: bool = False
    progress: bool = True
