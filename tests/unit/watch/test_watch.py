"""Looks at runs that grow, were killed or are complete, and what is shown of them."""

import io
import math
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest

from hpc_dasgd.cli.main import main
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage.layout import RUN_FILE, rank_file
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.storage.run_file import create_run, stop_run
from hpc_dasgd.watch import display
from hpc_dasgd.watch.watcher import Watcher
from tests.unit import synthetic

BUDGET = "[budget]\ngradients = 1000\nseconds = 900\ntarget_loss = 0.125\n"
EVALUATIONS = [(1.0, 10, 0.75, 0.5), (2.0, 20, 0.25, 0.875)]
WRITTEN_S = 1e9


class Clock:
    """Time that passes where somebody sleeps; then `events` take place."""

    def __init__(self, now_s, *events):
        self.now_s, self._events, self.n_slept = now_s, iter(events), 0

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds
        self.n_slept += 1
        next(self._events, lambda: None)()


def write_run(directory, n_ranks=3, every=1, seed=1, n_gradients=300, summary=None):
    """The files of a run, last written at `WRITTEN_S`, and its schedule."""
    run = synthetic.schedule(n_ranks, n_gradients, seed=seed)
    synthetic.write_run(directory, run, every, config=BUDGET, evaluations=EVALUATIONS, summary=summary)
    for path in directory.iterdir():
        os.utime(path, (WRITTEN_S, WRITTEN_S))
    return run


def look_at(directory, now_s=WRITTEN_S + 1):
    with Watcher(directory) as watcher:
        return watcher.look(now_s)


def follow(path, clock, every_s=2.0, patience_s=60.0):
    """The lines that `watch` prints where there is no terminal."""
    stream = io.StringIO()
    display.watch(path, every_s, patience_s, stream, clock, clock.sleep)
    return stream.getvalue().splitlines()


# Looks.


@pytest.mark.parametrize("place", ["", RUN_FILE])
def test_a_look_at_a_run_that_goes_on(tmp_path, place):
    run = write_run(tmp_path)
    look = look_at(tmp_path / place)
    counts = [len(end) for end in run.end]
    assert (look.status, look.summary) == ("running", {})
    assert look.budget == {"gradients": 1000, "seconds": 900, "target_loss": 0.125}
    assert look.counts.tolist() == counts and look.gradients == 300
    assert look.elapsed_s == max(end[-1] for end in run.end)
    assert look.quiet_s.tolist() == [1, 1, 1] and look.silent_s == 1
    assert look.evaluation == {"t_s": 2.0, "gradients": 20, "loss": 0.25, "accuracy": 0.875}
    losses = [rank + np.arange(max(0, n - 100), n).mean() / 1000 for rank, n in enumerate(counts)]
    assert look.loss == pytest.approx(np.mean(losses))
    rates = [(n - 3 * n // 4) / (end[-1] - end[3 * n // 4 - 1]) for n, end in zip(counts, run.end, strict=True)]
    np.testing.assert_allclose(look.rates, rates)
    by_gradients, by_seconds = 700 / sum(rates), 900 - look.elapsed_s
    assert look.remaining_s == pytest.approx(min(by_gradients, by_seconds))


def reference_staleness(run, every, until_s):
    """By rank: gradients of all ranks before each of the last 32 logged ones that were not held, on average."""
    means = []
    for ends, held in zip(run.end, run.held, strict=True):
        logged = [k for k in range(0, len(ends), every) if ends[k] <= until_s][-32:]
        missed = [sum(int((others < ends[k]).sum()) for others in run.end) - len(held[k]) for k in logged]
        means.append(np.mean(missed))
    return means


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("at_work", [True, False])
def test_staleness_is_that_of_the_last_gradients(tmp_path, every, at_work):
    run = write_run(tmp_path, n_ranks=4, every=every)
    # What a rank at work has completed since it last wrote is not known.
    until_s = min(end[-1] for end in run.end) if at_work else math.inf
    look = look_at(tmp_path, WRITTEN_S + (1 if at_work else 100))
    reference = reference_staleness(run, every, until_s)
    np.testing.assert_allclose(look.staleness, reference)
    assert look.mean_staleness == pytest.approx(np.average(reference, weights=look.rates))


def test_staleness_is_exact_where_not_all_times_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("hpc_dasgd.watch.watcher._MAX_KEPT", 16)
    monkeypatch.setattr("hpc_dasgd.watch.watcher._MIN_KEPT", 16)
    run = write_run(tmp_path, n_ranks=2, n_gradients=400)
    since_s = max(end[-16] for end in run.end)
    found = look_at(tmp_path, WRITTEN_S + 100).staleness
    for rank in range(2):
        known = [k for k, end_s in enumerate(run.end[rank]) if end_s >= since_s]
        missed = [
            sum(int((others < run.end[rank][k]).sum()) for others in run.end) - len(run.held[rank][k]) for k in known
        ]
        assert found[rank] == pytest.approx(np.mean(missed))


def test_without_vectors_there_is_no_staleness(tmp_path):
    write_run(tmp_path, every=0)
    look = look_at(tmp_path)
    assert np.isnan(look.staleness).all()
    assert "staleness" not in display.line(look)


def test_a_run_whose_ranks_have_written_nothing(tmp_path):
    create_run(tmp_path, config_toml="damaged [", attributes={"n_ranks": 2}, x0=np.zeros(2))
    look = look_at(tmp_path)
    assert (look.gradients, look.rate, look.budget, look.evaluation) == (0, 0, {}, None)
    with RankLog(tmp_path, 0, 2, 1):
        pass
    (tmp_path / rank_file(1)).touch()
    look = look_at(tmp_path)
    assert look.counts.tolist() == [0, 0]
    assert display.line(look) == "     0.0 s  gradients 0  0/s  slowest rank 0 (0/s)"
    assert len(display.screen(look, 80, 20)) == 6


def test_a_look_takes_in_what_was_written_since(writer):
    """The rank of `writer` makes 1,000 gradients per second of its time."""
    log = writer.path.rename(writer.path.with_name("aside"))  # a run is created before its logs
    create_run(writer.directory, config_toml=BUDGET, attributes={"n_ranks": 1}, x0=np.zeros(2))
    log.rename(writer.path)
    with Watcher(writer.directory) as watcher:
        now_s = os.stat(writer.path).st_mtime
        assert watcher.look(now_s).gradients == 1
        for n in range(1, 15):
            writer.append_1000(1000 * n)
            look = watcher.look(now_s + n)
            assert look.gradients == 1000 * n + 1
            assert look.loss == 1000 * n - 49.5
            assert look.evaluation["t_s"] == 1000 * n
            assert look.quiet_s == [0]
            assert look.rates == pytest.approx([1000], rel=1e-3)
            assert look.staleness == [0]
        writer.kill()
        assert watcher.look(now_s + 100).quiet_s == [86]
    assert look_at(writer.directory, now_s + 100).gradients == 14001


# Runs that were resumed.


@pytest.mark.parametrize("every", [1, 4])
def test_a_look_is_at_the_newest_generation(tmp_path, every):
    runs = [synthetic.schedule(n_ranks, 200, seed=n_ranks) for n_ranks in (4, 3)]
    expected = synthetic.write_generations(tmp_path, runs, every=every, config=BUDGET)
    look = look_at(tmp_path / "generation_00001", os.stat(tmp_path / "generation_00001" / RUN_FILE).st_mtime + 100)
    assert look.counts.tolist() == [len(end) for end in expected.end[:3]]
    assert (look.gradients, look.n_earlier) == (400, len(runs[0].end[3]))
    assert look.elapsed_s == max(end[-1] for end in expected.end)
    assert look.evaluation["gradients"] == 200
    np.testing.assert_allclose(look.staleness, reference_staleness(runs[1], 1, math.inf) if every == 1 else [
        np.mean(missed(expected, rank, len(runs[0].end[rank]), every)[-32:]) for rank in range(3)
    ])  # fmt: skip


def missed(run, rank, since, every):
    """Staleness of the logged gradients of a rank from one on, by its definition."""
    logged = [k for k in range(since, len(run.end[rank])) if k % every == 0]
    done = [sum(int((ends < run.end[rank][k]).sum()) for ends in run.end) for k in logged]
    return [n - int(run.versions[rank][k].sum()) for n, k in zip(done, logged, strict=True)]


def test_a_new_generation_is_followed(tmp_path):
    runs = [synthetic.schedule(n_ranks, 100, seed=n_ranks) for n_ranks in (2, 3)]
    expected = synthetic.resumed(runs)
    synthetic.write_generation(tmp_path, 0, runs[0], [0, 0])
    with Watcher(tmp_path) as watcher:
        now_s = os.stat(tmp_path / rank_file(0)).st_mtime
        assert watcher.look(now_s).counts.tolist() == [len(end) for end in runs[0].end]
        synthetic.write_generation(tmp_path, 1, runs[1], expected.before[1], expected.begun_s[1])
        look = watcher.look(now_s + 10)
        assert look.counts.tolist() == [len(end) for end in expected.end] and look.gradients == 200
        assert look.elapsed_s == max(end[-1] for end in expected.end)


@pytest.mark.parametrize("first", [90, 100, 120])
def test_a_log_is_followed_into_its_next_part(tmp_path, first):
    """Which begins before the end of the last one, at it, or behind rows that are lost."""
    run = synthetic.schedule(1, 300)
    create_run(tmp_path, config_toml="", attributes={"n_ranks": 1}, x0=np.zeros(2))
    now_s = os.stat(tmp_path / RUN_FILE).st_mtime
    with RankLog(tmp_path, 0, 1, 1) as log:
        synthetic.write_rows(log, 0, run, 0.0, 0, range(100))
    with Watcher(tmp_path) as watcher:
        assert watcher.look(now_s).gradients == 100
        (tmp_path / "aside").mkdir()
        run.versions[0] -= np.uint32(first)
        with RankLog(tmp_path / "aside", 0, 1, 1, before=np.array([first])) as log:
            synthetic.write_rows(log, 0, run, 0.0, 0, range(first, 300))
        (tmp_path / "aside" / rank_file(0)).rename(tmp_path / rank_file(0, 1))
        look = [watcher.look(now_s + n) for n in range(1, 4)][-1]
    assert look.gradients == 300 and look.staleness == [0]
    assert look.elapsed_s == run.end[0][-1]


def test_a_stopped_run_ends_the_watch(tmp_path):
    write_run(tmp_path)
    stop_run(tmp_path, {"gradients": 300, "seconds": 50.0})
    *looks, last = follow(tmp_path, Clock(WRITTEN_S + 1e6))
    assert last.startswith("stopped by a signal, go on with --resume: 300 gradients on 3 ranks in 50.0 s (6/s)")
    assert len(looks) == 1 and "ends in" not in looks[0]


# Text.


def test_one_line(tmp_path):
    write_run(tmp_path)
    look = look_at(tmp_path)
    text = display.line(look)
    assert "\n" not in text
    slowest = look.rates.argmin()
    for part in (
        f"{look.elapsed_s:.1f} s",
        "gradients 300/1000 (30%)",
        f"{look.rate:.4g}/s",
        f"loss {look.loss:.4g}",
        f"staleness {look.mean_staleness:.4g}",
        "evaluated at 2.0 s: loss 0.25, accuracy 0.875",
        f"slowest rank {slowest} ({look.rates[slowest]:.4g}/s)",
        f"ends in {look.remaining_s:.0f} s",
    ):
        assert part in text


def test_a_screen_holds_all_ranks_where_it_has_room(tmp_path):
    write_run(tmp_path)
    look = look_at(tmp_path)
    lines = display.screen(look, 200, 24)
    assert lines[0] == f"{tmp_path}: running, {look.elapsed_s:.1f} s, at most 900 s, to a loss of 0.125"
    table = [text.split() for text in lines[4:]]
    assert [(int(row[0]), int(row[1]), row[2]) for row in table] == [
        (rank, look.counts[rank], f"{look.rates[rank]:.4g}/s") for rank in range(3)
    ]
    assert all(row[4:] == ["1", "s", "ago"] for row in table)


@pytest.mark.parametrize("rows", [7, 8, 12, 20])
def test_a_small_screen_holds_the_slowest_and_the_fastest(tmp_path, rows):
    write_run(tmp_path, n_ranks=30, n_gradients=600)
    look = look_at(tmp_path)
    lines = display.screen(look, 60, rows)
    assert len(lines) == rows and max(map(len, lines)) <= 60
    table = lines[4:]
    middle = next(k for k, text in enumerate(table) if "..." in text)
    shown = [int(text.split()[0]) for text in table[:middle] + table[middle + 1 :]]
    order = np.argsort(look.rates).tolist()
    assert shown == order[:middle] + order[30 - (len(table) - middle - 1) :]
    assert f"{30 - len(shown)} ranks between" in table[middle]


def test_a_tiny_screen_is_not_overrun(tmp_path):
    write_run(tmp_path)
    assert [len(display.screen(look_at(tmp_path), 10, rows)) for rows in (1, 3, 5)] == [1, 3, 5]


# The loop.


def test_a_complete_run_is_shown_once(tmp_path):
    write_run(tmp_path, summary={"gradients": 300, "seconds": 50.0})
    clock = Clock(WRITTEN_S + 1e6)
    *looks, last = follow(tmp_path, clock)
    assert last == "complete: 300 gradients on 3 ranks in 50.0 s (6/s), loss 0.25, accuracy 0.875"
    assert len(looks) == 1 and clock.n_slept == 0
    assert "ends in" not in looks[0]


def test_it_follows_until_the_run_is_complete(tmp_path):
    """Ends with the look at the new ``run.h5``."""
    write_run(tmp_path)
    complete = tmp_path / "elsewhere"
    write_run(complete, summary={"gradients": 300, "seconds": 50.0})
    clock = Clock(WRITTEN_S, lambda: None, lambda: os.replace(complete / RUN_FILE, tmp_path / RUN_FILE))
    *looks, last = follow(tmp_path, clock)
    assert len(looks) == 3 and last.startswith("complete: 300 gradients")


def test_a_killed_run_is_known_at_once_by_the_dates_of_its_files(tmp_path):
    write_run(tmp_path)
    clock = Clock(WRITTEN_S + 3600)
    *looks, last = follow(tmp_path, clock)
    assert last == "no news for 3600 s: the job was killed or hangs"
    assert len(looks) == 1 and clock.n_slept == 0


def test_a_run_that_writes_no_more_is_given_up_after_the_patience(tmp_path):
    write_run(tmp_path)
    *looks, last = follow(tmp_path, Clock(WRITTEN_S + 5), every_s=2.0, patience_s=10.0)
    assert last == "no news for 11 s: the job was killed or hangs"
    assert len(looks) == 4


def test_files_dated_in_the_future_do_not_prolong_the_patience(tmp_path):
    write_run(tmp_path)
    lines = follow(tmp_path, Clock(WRITTEN_S - 3600), every_s=2.0, patience_s=10.0)
    assert lines[-1] == "no news for 10 s: the job was killed or hangs"


@pytest.mark.parametrize("made", ["nothing", "directory", "run file"])
def test_a_run_is_waited_for(tmp_path, made):
    directory = tmp_path / "run"
    if made == "directory":
        directory.mkdir()
    if made == "run file":
        directory.mkdir()
        (directory / RUN_FILE).touch()

    def make():
        (directory / RUN_FILE).unlink(missing_ok=True)
        write_run(directory, summary={"gradients": 300, "seconds": 50.0})

    lines = follow(directory, Clock(WRITTEN_S, lambda: None, make))
    assert lines[0] == f"waiting for {directory}"
    assert len(lines) == 3 and lines[-1].startswith("complete")


def test_a_run_that_does_not_come_is_an_error(tmp_path):
    clock = Clock(WRITTEN_S)
    with pytest.raises(ConfigError, match=r"run must be a run directory or its run\.h5: No such file"):
        follow(tmp_path / "run", clock, every_s=2.0, patience_s=9.0)
    assert clock.n_slept == 5


@pytest.mark.parametrize("place", ["nowhere/run", "file", "file/run"])
def test_a_place_where_no_run_can_come_is_an_error_at_once(tmp_path, place):
    (tmp_path / "file").touch()
    clock = Clock(WRITTEN_S)
    with pytest.raises(ConfigError, match="must be a run directory"):
        follow(tmp_path / place, clock)
    assert clock.n_slept == 0


def test_a_terminal_is_drawn_in_place(tmp_path):
    write_run(tmp_path)
    script = (
        "import sys, itertools\nfrom hpc_dasgd.watch.display import watch\n"
        "clock = itertools.count(1e9, 2.0).__next__\n"
        "watch(sys.argv[1], 2.0, 5.0, None, clock, lambda seconds: None)\n"
    )
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": "70", "LINES": "20"}
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=follower, env=environment) as process:
        os.close(follower)
        shown = b""
        while piece := read(leader):
            shown += piece
    os.close(leader)
    assert process.returncode == 0
    first, *others = re.split(r"\x1b\[7A", shown.decode())
    assert len(others) == 2
    assert all(text.count("\x1b[K") == 7 for text in (first, *others))
    assert "no news for 6 s" in others[-1]


def read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux says that no writer is left
        return b""


# The command.


def test_the_command(tmp_path, capsys):
    write_run(tmp_path, summary={"gradients": 300, "seconds": 50.0})
    assert main(["watch", str(tmp_path), "--every", "0.5", "--patience", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("complete: 300 gradients")


@pytest.mark.parametrize("option", ["--every", "--patience"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon", "inf"])
def test_wrong_seconds(tmp_path, capsys, option, value):
    assert main(["watch", str(tmp_path), f"{option}={value}"]) == 2
    assert f"{option}: must be a positive number, got '{value}'" in capsys.readouterr().err


def test_ctrl_c_ends_it_quietly(tmp_path, capsys, monkeypatch):
    write_run(tmp_path)
    os.utime(tmp_path / RUN_FILE)  # now

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(display.watch, "__defaults__", (*display.watch.__defaults__[:-1], interrupted))
    with pytest.raises(SystemExit) as ended:
        main(["watch", str(tmp_path)])
    captured = capsys.readouterr()
    assert ended.value.code == 130
    assert (len(captured.out.splitlines()), captured.err) == (1, "")
