"""Logs with flipped bits or a missing end: reading names the file, in bounded time, and completing the run succeeds."""

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
    """Return `content` truncated (each fifth `number`), or with a flipped bit, mostly in the metadata at its start."""
    rng = np.random.default_rng(number)
    if number % 5 == 0:
        return content[: rng.integers(len(content))]
    changed = bytearray(content)
    changed[rng.integers(12_000 if number % 5 < 4 else len(content))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def problems_of(directory):
    """Return the warnings and errors of reading a run, as one text."""
    run = open_run(directory)
    problems = run.warnings[:]
    for read in READ.values():
        try:
            read(run)
        except ConfigError as error:
            problems.append(str(error))
    return " ".join(problems)


@pytest.mark.timeout(60)
def test_damaged_log_of_a_killed_rank_is_named(writer):
    log = writer.path.rename(writer.path.with_name("aside"))  # a run is created before its logs
    create_run(writer.directory, config_toml="", attributes={"n_ranks": 1}, x0=synthetic.X0)
    log.rename(writer.path)
    writer.append_1000(1000)
    writer.kill()
    content = writer.path.read_bytes()
    n_named = 0
    for number in range(60):
        writer.path.write_bytes(damaged(content, number))
        n_named += "rank_00000.h5" in problems_of(writer.directory)
    assert n_named > 20


def test_run_with_a_damaged_log_can_be_completed(tmp_path):
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
        n_named += name in problems_of(directory)
        complete_run(directory, final=synthetic.X0 + 1, attributes={})
        assert open_run(directory).final.tolist() == (synthetic.X0 + 1).tolist()
    assert n_named > 10
