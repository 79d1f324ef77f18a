"""Attributes of a run, merged from the ``run.h5`` of its generations, and the warnings that follow from them."""

from collections.abc import Mapping, Sequence
from typing import Any

from hpc_dasgd.config.exchange_traits import traits_in
from hpc_dasgd.storage.generations import Generation
from hpc_dasgd.storage.run_settings import config_sections

_FROM_FIRST_GENERATION = ("started", "command")
_LISTS_BY_RANK = ("hosts", "devices", "nodes", "cores", "transferred_bytes", "clock_offset_s", "clock_drift_s")


def merged_attributes(generations: Sequence[Generation]) -> dict[str, Any]:
    """Return the attributes of a run.

    Parameters
    ----------
    generations : sequence of Generation
        Generations that count, oldest first.

    Returns
    -------
    attributes : dict of str to (str, int, float or list)
        Attributes of the newest generation, except for ``started`` and ``command``, which are those of the first.
        A list with one entry per rank is completed from earlier generations if these had more ranks. Empty lists
        are left out.
    """
    first, newest = generations[0].attributes, generations[-1].attributes
    merged = newest | {name: first[name] for name in _FROM_FIRST_GENERATION if name in first}
    for name in _LISTS_BY_RANK:
        values: list[Any] = []
        for generation in reversed(generations):
            values += generation.attributes.get(name, [])[len(values) :]
        merged.pop(name, None)
        if values:
            merged[name] = values
    return merged


def warnings_from_attributes(attributes: Mapping[str, Any]) -> list[str]:
    """Return warnings about the status of a run, and notes on the log of a run with its exchange."""
    exchange = config_sections(attributes["config"]).get("exchange", {})
    warnings = []
    if attributes["status"] == "stopped":
        warnings.append("stopped by a signal; continue with --resume")
    elif attributes["status"] != "complete":
        warnings.append("the run is not complete: it is still running, or it was killed")
    if attributes.get("died"):
        ranks = ", ".join(map(str, attributes["died"]))
        warnings.append(f"ranks {ranks} died during the run: their last gradients may be missing from the log")
    traits = traits_in(exchange)
    warnings += [f"`exchange.kind` is {traits.kind}: {remark}" for remark in traits.remarks_on(exchange)]
    return warnings
