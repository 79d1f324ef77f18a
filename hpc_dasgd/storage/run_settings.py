"""Settings as a ``run.h5`` holds them: the TOML text of its attribute ``config``."""

import tomllib
from pathlib import Path
from typing import Any

from hpc_dasgd.config.settings import Config, load_config
from hpc_dasgd.errors import ConfigError


def parse_config(text: str, directory: Path) -> Config:
    """Parse the settings of a run.

    Parameters
    ----------
    text : str
        TOML.
    directory : Path
        Directory of the ``run.h5``, for the message.

    Raises
    ------
    ConfigError
        If this version of the package does not accept the settings.
    """
    try:
        return load_config(tomllib.loads(text))
    except (ConfigError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"this version cannot read the settings of {directory}: {error}") from None


def config_sections(text: str) -> dict[str, dict[str, Any]]:
    r"""Return the sections of settings written by any version of the package; empty if `text` is not TOML.

    Examples
    --------
    >>> config_sections('name = "a"\n[budget]\nseconds = 5')
    {'budget': {'seconds': 5}}
    """
    try:
        return {name: section for name, section in tomllib.loads(text).items() if isinstance(section, dict)}
    except tomllib.TOMLDecodeError:
        return {}
