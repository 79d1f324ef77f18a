"""Help texts for the command line, made from the definitions of the settings and the table of exchanges."""

import json

from hpc_dasgd.config.exchange_traits import all_traits
from hpc_dasgd.config.sections import settings_of
from hpc_dasgd.config.settings import Config


def settings_help() -> str:
    """Return one line per setting: key, default, meaning."""
    lines = []
    for key, entry in settings_of(Config):
        default = "" if entry.default is None else json.dumps(entry.default)
        lines.append(f"  {key:<30} {default:<12} {entry.metadata['text']}".rstrip())
    return "\n".join(lines)


def exchanges_help() -> str:
    """Return one line per exchange: kind, what a rank does, what it transfers, and the topologies it can use."""
    lines = []
    for traits in all_traits():
        topologies = f" (topology: {', '.join(traits.topologies)})" if traits.chooses_topology else ""
        lines.append(f"  {traits.kind}: {traits.summary}; transfers per exchange: {traits.traffic}{topologies}")
    return "\n".join(lines)
