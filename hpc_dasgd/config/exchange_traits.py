"""What each exchange can do: one record per kind, used by every room in place of comparisons with names of kinds.

A new exchange is a class in `hpc_dasgd.exchange`, a row in this table and a test file; see
``docs/adding-an-exchange.md``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from hpc_dasgd.errors import ConfigError

Combination: TypeAlias = Literal["sum", "newest", "mean", "own"]
"""How parameters are made from the contributions of all ranks: ``sum``: their sum; ``newest``: the contribution that
contains the most gradients; ``mean``: their mean; ``own``: each rank keeps its own."""

StalenessKind: TypeAlias = Literal["exact", "upper", "share", "meaningless"]
"""What the staleness computed from version vectors means. ``exact``: the number of gradients missed. ``upper``: at
least that number, since a replica may contain more updates than its version vector counts. ``share``: a version vector
counts updates of which the replica contains only a fraction. ``meaningless``: replicas are independent."""


@dataclass(frozen=True)
class Remark:
    """A note about runs of an exchange that reports print.

    Attributes
    ----------
    text : str
        Text of the note.
    setting, value : str
        The remark applies only if this setting of ``[exchange]`` has this value; always if `setting` is empty.
    """

    text: str
    setting: str = ""
    value: str = ""

    def applies(self, settings: Mapping[str, Any]) -> bool:
        """Return True if the remark applies to a run with these settings of ``[exchange]``."""
        return not self.setting or settings.get(self.setting) == self.value


@dataclass(frozen=True, kw_only=True)
class ExchangeTraits:
    """What one kind of exchange can do.

    Attributes
    ----------
    kind : str
        The value of ``exchange.kind``.
    summary : str
        What a rank does at each step, in one line: for ``train --help``, reports and README.
    traffic : str
        What a rank reads and sends at each exchange, for ``train --help`` and README.
    implementation : str
        ``"package.module:name"`` of the class, or of a function that chooses one; called with an
        ``exchange.interface.ExchangeSetup``. Imported when the exchange is used.
    combines : {"sum", "newest", "mean", "own"}
        How the contributions of all ranks become parameters when a run is resumed.
    staleness : {"exact", "upper", "share", "meaningless"}
        What the staleness computed from the version vectors of a run means.
    topologies : tuple of str
        Overlays that ``exchange.topology`` may name; empty if the exchange ignores that setting.
    settings : tuple of str
        Settings of ``[exchange]`` that it uses, besides ``kind``.
    shown_settings : tuple of str
        The ones among `settings` that tables show next to the kind.
    whole_updates : bool
        Whether a replica contains only complete updates and the staleness of a gradient is known during training.
        The convergence bounds and the staleness-adaptive stepsize need it.
    replayable : bool
        Whether a replica is a function of its version vector, so that a run can be recomputed from its log.
    replay_requires : tuple of (str, str)
        Settings, with their value, that a replay needs.
    plannable : bool
        Whether ``plan`` can simulate it.
    gives_times : bool
        Whether ``plan --from`` can take times of gradients and exchanges from its runs.
    survives_deaths : bool
        Whether ``exchange.survive`` is available.
    on_device : bool
        Whether replicas and contributions stay on a GPU; other exchanges work on copies in host memory.
    device_windows : bool
        Whether ``exchange.device_windows`` is available.
    synchronous : bool
        Whether every step is a collective operation, so that ``exchange.every`` must be 1.
    idle_unless : tuple of (str, str), optional
        Name of a setting that holds a rank, and of a setting that must be true for this rank to compute gradients.
    remarks : tuple of Remark
        Notes for reports.
    """

    kind: str
    summary: str
    traffic: str
    implementation: str
    combines: Combination
    staleness: StalenessKind
    topologies: tuple[str, ...] = ()
    settings: tuple[str, ...] = ("every", "max_overhead")
    shown_settings: tuple[str, ...] = ()
    whole_updates: bool = False
    replayable: bool = False
    replay_requires: tuple[tuple[str, str], ...] = ()
    plannable: bool = False
    gives_times: bool = False
    survives_deaths: bool = False
    on_device: bool = False
    device_windows: bool = False
    synchronous: bool = False
    idle_unless: tuple[str, str] | None = None
    remarks: tuple[Remark, ...] = ()

    @property
    def measures_staleness(self) -> bool:
        """Whether the staleness computed from a run is meaningful."""
        return self.staleness != "meaningless"

    @property
    def chooses_topology(self) -> bool:
        """Whether the setting ``exchange.topology`` has an effect."""
        return len(self.topologies) > 1

    @property
    def contribution_is_own(self) -> bool:
        """Whether a contribution contains only the rank's own updates until the final synchronisation of a run."""
        return self.combines in ("sum", "own")

    def idle_ranks(self, settings: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the ranks that compute no gradients with these settings of ``[exchange]``."""
        if self.idle_unless is None or settings.get(self.idle_unless[1], True):
            return ()
        return (int(settings.get(self.idle_unless[0], 0)),)

    def remarks_on(self, settings: Mapping[str, Any]) -> list[str]:
        """Return the notes for a run with these settings of ``[exchange]``."""
        return [remark.text for remark in self.remarks if remark.applies(settings)]

    def described(self, settings: Mapping[str, Any]) -> str:
        """Return the kind and the values of `shown_settings`, except ``"snapshot"``, the default ``consistency``."""
        shown = (settings.get(name) for name in self.shown_settings)
        return ", ".join([self.kind, *(str(value) for value in shown if value not in (None, "snapshot"))])


_UPPER_BOUND = Remark(
    "a replica may contain more updates than its version vector counts: the computed staleness is an upper bound"
)

_TABLE: dict[str, ExchangeTraits] = {
    traits.kind: traits
    for traits in (
        ExchangeTraits(
            kind="read",
            summary="reads the contributions of its neighbours: on a tree, partial sums along the edges",
            traffic="one model per neighbour",
            implementation="hpc_dasgd.exchange.read.exchange:ReadExchange",
            combines="sum",
            staleness="exact",
            topologies=("complete", "tree", "ring", "star"),
            settings=(
                *("every", "max_overhead", "topology", "fan_out", "consistency", "reads_in_flight"),
                *("survive", "heartbeat_timeout_s", "device_windows"),
            ),
            shown_settings=("topology", "consistency"),
            whole_updates=True,
            replayable=True,
            replay_requires=(("consistency", "snapshot"),),
            plannable=True,
            gives_times=True,
            survives_deaths=True,
            on_device=True,
            device_windows=True,
            remarks=(
                Remark(
                    "`exchange.consistency` is elementwise: staleness is exact only to within the two versions between "
                    "which a contribution was read",
                    setting="consistency",
                    value="elementwise",
                ),
            ),
        ),
        ExchangeTraits(
            kind="accumulate",
            summary="adds its update to the model of every rank",
            traffic="n - 1 models, twice",
            implementation="hpc_dasgd.exchange.push.accumulate:AccumulateExchange",
            combines="newest",
            staleness="upper",
            topologies=("complete",),
            whole_updates=True,
            remarks=(_UPPER_BOUND,),
        ),
        ExchangeTraits(
            kind="gossip",
            summary="reads one neighbour and averages the two replicas, or takes a share of its mass (push-sum)",
            traffic="one model (push-sum: in float64)",
            implementation="hpc_dasgd.exchange.gossip.choice:make_gossip",
            combines="mean",
            staleness="share",
            topologies=("complete", "ring", "torus", "exponential", "random-regular"),
            settings=("every", "max_overhead", "topology", "mixing", "degree"),
            shown_settings=("mixing", "topology"),
            remarks=(Remark("a version vector counts updates of which a replica contains only a fraction"),),
        ),
        ExchangeTraits(
            kind="server",
            summary="reads the model of `server_rank` and adds its update to that model",
            traffic="three models",
            implementation="hpc_dasgd.exchange.push.server:ServerExchange",
            combines="newest",
            staleness="upper",
            settings=("every", "max_overhead", "server_rank", "server_computes"),
            whole_updates=True,
            idle_unless=("server_rank", "server_computes"),
            remarks=(_UPPER_BOUND,),
        ),
        ExchangeTraits(
            kind="allreduce",
            summary="synchronous SGD: adds the mean of the updates of all ranks",
            traffic="depends on the MPI library",
            implementation="hpc_dasgd.exchange.baselines.allreduce:AllreduceExchange",
            combines="newest",
            staleness="exact",
            settings=(),
            synchronous=True,
        ),
        ExchangeTraits(
            kind="none",
            summary="trains independently of the other ranks",
            traffic="nothing",
            implementation="hpc_dasgd.exchange.baselines.none:NoExchange",
            combines="own",
            staleness="meaningless",
            settings=(),
            gives_times=True,
            on_device=True,
            remarks=(Remark("replicas are independent: staleness is not meaningful"),),
        ),
    )
}

_UNKNOWN = ExchangeTraits(
    kind="unknown", summary="", traffic="", implementation="", combines="newest", staleness="exact"
)


def traits_of(kind: str) -> ExchangeTraits:
    """Return the traits of an exchange.

    Raises
    ------
    ConfigError
        If there is no exchange of this kind.
    """
    if kind not in _TABLE:
        raise ConfigError(f"`exchange.kind` must be one of {', '.join(_TABLE)}, got {kind!r}")
    return _TABLE[kind]


def traits_in(settings: Mapping[str, Any]) -> ExchangeTraits:
    """Return the traits of the exchange that ``[exchange]`` of a file names; the file may be of any version.

    Returns
    -------
    traits : ExchangeTraits
        A record in which no optional trait is set, if the kind is missing or unknown to this version.
    """
    return _TABLE.get(str(settings.get("kind")), _UNKNOWN)


def all_traits() -> tuple[ExchangeTraits, ...]:
    """Return the records of all exchanges, in the order of the table."""
    return tuple(_TABLE.values())


def kinds_with(trait: str) -> tuple[str, ...]:
    """Return the kinds whose record has a true attribute of this name, in the order of the table.

    Examples
    --------
    >>> kinds_with("replayable")
    ('read',)
    """
    return tuple(traits.kind for traits in _TABLE.values() if getattr(traits, trait))


def register(traits: ExchangeTraits) -> None:
    """Add the record of an exchange that does not ship with the package.

    Call it on every rank before loading settings that name the exchange. Not collective.

    Raises
    ------
    ConfigError
        If there is an exchange of this kind already.
    """
    if traits.kind in _TABLE:
        raise ConfigError(f"`exchange.kind` must not be registered twice, got {traits.kind!r}")
    _TABLE[traits.kind] = traits


def unregister(kind: str) -> None:
    """Remove the record of an exchange that was added by `register`; do nothing if there is none."""
    _TABLE.pop(kind, None)
