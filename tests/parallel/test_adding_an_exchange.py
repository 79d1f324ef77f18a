"""The exchange of ``docs/adding-an-exchange.md``, extracted from the document, trains and works with the commands."""

import importlib
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import hpc_dasgd
from hpc_dasgd.cli.main import main
from hpc_dasgd.config import exchange_traits, settings
from hpc_dasgd.errors import ConfigError

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "adding-an-exchange.md"
DIGITS = ROOT / "jobs" / "digits.toml"
KIND = "delayed-mean"


def write_code(folder):
    """Write the code blocks of the document into files of `folder`, as their first lines name them."""
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", DOCUMENT.read_text(), flags=re.DOTALL | re.MULTILINE)
    for name, code in blocks:
        (folder / name).write_text(code)
    return [name for name, _ in blocks]


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """Register the exchange by the script of the document; returns the module with the test of the document."""
    names = write_code(tmp_path)
    assert names == ["delayed_mean.py", "train_delayed_mean.py", "test_delayed_mean.py"]
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("train_delayed_mean")
    yield importlib.import_module("test_delayed_mean")
    exchange_traits.unregister(KIND)
    for name in names:
        sys.modules.pop(name.removesuffix(".py"), None)


def train(comm, run, *overrides, **options):
    overrides = [f"exchange.kind={KIND}", *overrides]
    return hpc_dasgd.train(DIGITS, overrides=overrides, run=run, comm=comm, progress=False, **options)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("every", [1, 3])
def test_the_test_of_the_document_passes(comm, registered, every):
    registered.test_replicas_end_as_the_mean_of_all_updates(comm, every)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("every", [1, 4])
def test_it_trains_and_its_log_agrees_with_the_result(comm, registered, tmp_path, every):
    result = train(comm, tmp_path / "run", f"exchange.every={every}", "budget.gradients=2000")
    assert result.accuracy > 0.8 and result.gradients >= 2000 and math.isfinite(result.drift)
    assert len(set(comm.allgather(result.parameters.tobytes()))) == 1
    run = hpc_dasgd.open_run(result.run)
    assert run.status == "complete" and run.n_ranks == comm.size
    assert run.counts.sum() == len(run.gradients) == result.gradients
    np.testing.assert_array_equal(run.final, result.parameters)
    for rank, vectors in enumerate(run.versions):
        assert vectors[:, rank].tolist() == list(range(run.counts[rank]))
        assert np.all(np.diff(vectors.astype(np.int64), axis=0) >= 0) and np.all(vectors <= run.counts)
        assert comm.size == 1 or vectors[-1].sum() > vectors[-1, rank]
    comm.Barrier()


@pytest.mark.parallel([1, 2, 4])
def test_its_run_is_resumed(comm, registered, tmp_path):
    first = train(comm, tmp_path / "run", "budget.gradients=600")
    second = train(comm, first.run, "budget.gradients=1500", resume=True)
    assert second.run == first.run and second.gradients >= 1500 > 600
    run = hpc_dasgd.open_run(second.run)
    assert run.status == "complete" and len(run.generations) == 2 and run.counts.sum() == second.gradients
    comm.Barrier()


def test_settings_and_help_know_a_registered_exchange(registered, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"{KIND}: trains alone, and moves to the mean of all replicas" in text
    config = settings.load_config(DIGITS, [f"exchange.kind={KIND}"])
    assert config.exchange.kind == KIND
    with pytest.raises(ConfigError, match=f"`exchange.kind` must not be registered twice, got '{KIND}'"):
        exchange_traits.register(exchange_traits.traits_of(KIND))
    exchange_traits.unregister(KIND)
    with pytest.raises(ConfigError, match=f"`exchange.kind` must be one of .*got '{KIND}'"):
        settings.load_config(DIGITS, [f"exchange.kind={KIND}"])


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_the_script_runs_as_it_is_and_commands_accept_its_run(mpiexec, tmp_path, capsys, n_ranks):
    write_code(tmp_path)
    (tmp_path / "digits.toml").write_text(DIGITS.read_text().replace("gradients = 20000", "gradients = 2000"))
    done = mpiexec(n_ranks, "train_delayed_mean.py", cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"accuracy 0\.[89]\d* after 2\d{3} gradients\n", done.stdout), done.stdout
    # The exchange is not registered here: commands treat it as one without abilities.
    run = str(tmp_path / "runs" / "delayed-mean")
    assert main(["report", run]) == 0
    assert KIND in capsys.readouterr().out
    assert main(["staleness", run]) == 0
    assert "staleness" in capsys.readouterr().out
    assert main(["replay", run]) == 2
    assert KIND in capsys.readouterr().err


def test_commands_refuse_what_a_registered_exchange_cannot_do(registered, capsys):
    config = [f"exchange.kind={KIND}", "optimizer.schedule=staleness-adaptive"]
    with pytest.raises(ConfigError, match=f"`exchange.kind` must be one of read, accumulate, server.*got {KIND}"):
        settings.load_config(DIGITS, config)
    assert main(["plan", str(DIGITS), "--ranks=4", f"--set=exchange.kind={KIND}"]) == 2
    assert f"`exchange.kind` must be read or none to plan with, got '{KIND}'" in capsys.readouterr().err
