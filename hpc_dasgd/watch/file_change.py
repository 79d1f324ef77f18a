"""Detection of changes of a file by its modification time."""

import math
from pathlib import Path


class FileChange:
    """Time of the last change of a file, by the clock of the observer.

    The clock of a file server may differ from the observer's. A change is therefore detected by comparing modification
    times with each other; the modification time is used as the time of a change only when the file is first seen.

    Parameters
    ----------
    path : Path
        The file; it need not exist yet.

    Attributes
    ----------
    path : Path
        The file.
    changed_s : float, s
        Time of the last known change; nan before the file was seen.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changed_s = math.nan
        self._modified_s: float | None = None

    def poll(self, now_s: float) -> None:
        """Update `changed_s` from the file's modification time.

        Parameters
        ----------
        now_s : float, s
            Current time of the observer.

        Raises
        ------
        OSError
            If there is no such file.
        """
        modified_s = self.path.stat().st_mtime
        if modified_s != self._modified_s:
            self.changed_s = min(modified_s, now_s) if self._modified_s is None else now_s
            self._modified_s = modified_s
