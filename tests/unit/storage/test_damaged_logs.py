"""Logs in which bits changed or the end is missing: named, soon, and never the end of anything else."""

import numpy as np
import pytest

from hpc_dasgd import ConfigError, open_run
from hpc_dasgd.storage.run_file import complete_run, create_run
from tests.unit import synthetic

READ = {
    "gradients": lambda run: run.gradients,
    "versions": lambda run: run.versions,
    "staleness": lambda run: run.staleness(),
    "evaluation": lambda run: run.evaluation,
    "lost work": lambda run: run.has_versions and run.n_holding_lost_work(),
}


def damaged(content, number):
    """A content with a bit changed, mostly in its first part, which tells where the rest is; each fifth one is cut."""
    rng = np.random.default_rng(number)
    if number % 5 == 0:
        return content[: rng.integers(len(content))]
    changed = bytearray(content)
    changed[rng.integers(12_000 if number % 5 < 4 else len(content))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def said_of(directory):
    """What reading the run says that is wrong with it."""
    run = open_run(directory)
    said = run.warnings[:]
    for read in READ.values():
        try:
            read(run)
        except ConfigError as error:
            said.append(str(error))
    return " ".join(said)


@pytest.mark.timeout(60)
def test_damage_to_the_log_of_a_killed_rank_is_named(writer):
    log = writer.path.rename(writer.path.with_name("aside"))  # a run is created before its logs
    create_run(writer.directory, config_toml="", attributes={"n_ranks": 1}, x0=synthetic.X0)
    log.rename(writer.path)
    writer.append_1000(1000)
    writer.kill()
    content = writer.path.read_bytes()
    n_named = 0
    for number in range(60):
        writer.path.write_bytes(damaged(content, number))
        n_named += "rank_00000.h5" in said_of(writer.directory)
    assert n_named > 20


def test_damage_to_a_log_keeps_no_run_from_its_end(tmp_path):
    directory = tmp_path / "run"
    runs = [synthetic.schedule(2, 300), synthetic.schedule(2, 200, seed=1)]
    synthetic.write_generations(directory, runs)
    contents = {path: path.read_bytes() for path in directory.rglob("*.h5")}
    n_named = 0
    for number in range(30):
        for path, content in contents.items():
            path.write_bytes(content)
        name = f"rank_0000{number % 2}.h5"
        path = directory / name if number % 4 < 2 else directory / "generation_00001" / name
        path.write_bytes(damaged(contents[path], number))
        n_named += name in said_of(directory)
        complete_run(directory, final=synthetic.X0 + 1, attributes={})
        assert open_run(directory).final.tolist() == (synthetic.X0 + 1).tolist()
    assert n_named > 10
