"""The HTML page of a run, parsed."""

import base64
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from hpc_dasgd.analysis.run import open_run
from hpc_dasgd.report import page_html
from hpc_dasgd.report.page import write_page
from hpc_dasgd.report.plots import available_plots
from tests.unit import synthetic

MARKUP = "<script>alert('run')</script> & \"co\""
VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Elements and texts of a page; fails if elements are not nested."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"] and data.strip():
            self.texts.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def write_and_read(tmp_path, name="run", bound=None, n_gradients=60, **options):
    schedule = synthetic.schedule(3, n_gradients, seed=2)
    attributes = {"hosts": ["north", "south", "<east>"], "command": "train & run", "numpy_version": "9.8.7"}
    run = open_run(synthetic.write_run(tmp_path / name, schedule, attributes=attributes, **options))
    directory = tmp_path / "report"
    directory.mkdir()
    pictures = [directory / f"{name}.png" for name in ("loss_seconds", "timeline")] if n_gradients else []
    for picture in pictures:
        picture.write_bytes(picture.stem.encode())
    path = write_page(run, pictures, directory, bound)
    assert path == directory / "report.html"
    return run, path.read_text(encoding="utf-8")


def test_the_page_contains_key_figures_facts_settings_and_warnings(tmp_path):
    evaluations = [(1.0, 10, 0.75, 0.5), (2.0, 20, 0.25, 0.875)]
    ending = {"seconds": 12.0, "drift": 1.5e-7, "dropped_reads": 3}
    config = 'name = "digits"\n\n[exchange]\nkind = "read"\ntopology = "ring"\n'
    run, text = write_and_read(tmp_path, evaluations=evaluations, summary=ending, config=config)
    parsed = Page(text)
    numbers = run.staleness().as_dict()
    cards = {"gradients": "60", "gradients/s": "5", "seconds": "12.0", "final loss": "0.25", "accuracy": "87.50%"}
    cards |= {
        "S_avg": f"{numbers['S_avg']:.4g}",
        "S_max": str(numbers["S_max"]),
        "drift": "1.5e-07",
        "dropped reads": "3",
    }
    assert cards.items() <= {(name, value) for value, name in pairwise(parsed.texts)}
    for shown in ("<east>", "train & run", "numpy 9.8.7", '[exchange]\nkind = "read"\ntopology = "ring"'):
        assert shown in parsed.texts, shown
    assert any("exchange read \N{MIDDLE DOT} topology ring" in text for text in parsed.texts)
    assert len(parsed.all("tr")) == 1 + run.n_ranks
    assert "3 reads were dropped, 5.0% of the gradients: neighbours wrote at the same time" in parsed.texts


def test_the_page_loads_nothing_from_the_network(tmp_path):
    _, text = write_and_read(tmp_path)
    parsed = Page(text)
    for tag, attributes in parsed.elements:
        assert tag not in ("script", "link", "iframe", "object")
        assert all(value.startswith("data:") for name, value in attributes.items() if name in ("src", "href"))
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[^\"]*", "", text))


def test_all_pictures_are_embedded(tmp_path):
    _, text = write_and_read(tmp_path)
    sources = [attributes["src"].removeprefix("data:image/png;base64,") for attributes in Page(text).all("img")]
    assert [base64.b64decode(source) for source in sources] == [b"loss_seconds", b"timeline"]


def test_every_plot_has_a_caption_in_a_section(tmp_path):
    schedule = synthetic.schedule(3, 60)
    run = open_run(synthetic.write_run(tmp_path / "run", schedule))
    captions = {name for known in page_html.SECTIONS.values() for name in known}
    assert {f"{name}.png" for name in captions} == set(available_plots(run))


def test_all_texts_are_escaped(tmp_path):
    bound = {"measured": 1.0, "paper": {MARKUP: MARKUP}, "stepsize": MARKUP, "best_stepsize": 0.1}
    content = page_html.Content(
        name=MARKUP,
        status=MARKUP,
        lead=MARKUP,
        warnings=[MARKUP],
        figures=[(MARKUP, MARKUP)],
        facts=[(MARKUP, MARKUP)],
        ranks=[{MARKUP: MARKUP}],
        settings=MARKUP,
        bound=bound,
    )
    parsed = Page(page_html.html(content, {"progress": b"picture"}))
    assert not parsed.all("script")
    assert sum(MARKUP in text for text in parsed.texts) >= 12


def test_a_run_name_that_is_html_is_escaped(tmp_path):
    name = "<img src=x onerror=alert(1)>"
    _, text = write_and_read(tmp_path, name=name)
    parsed = Page(text)
    assert parsed.texts[:2] == [name, name]
    assert len(parsed.all("img")) == 2


def test_a_run_without_gradients_has_a_page(tmp_path):
    _, text = write_and_read(tmp_path, n_gradients=0)
    texts = Page(text).texts
    assert "There are no gradients yet, so there is nothing to plot." in texts
    assert "the run is not complete: it is still running, or it was killed" in texts


def test_a_run_without_problems_has_no_warnings_on_its_page(tmp_path):
    _, text = write_and_read(tmp_path, summary={"seconds": 12.0})
    assert "Warnings" not in Page(text).texts


def test_the_page_shows_the_terms_of_the_bounds(tmp_path):
    def one(value, met, **terms):
        return {"value": value, "condition_met": met, "terms": terms}

    bound = {
        "measured": 0.5625,
        "A": one(2.75, True, start=1.0, noise=0.75, staleness=1.0),
        "B": one(np.inf, False, start=1.0, noise=0.0, staleness=np.inf),
        "paper": {"first": 0.125, "nested": {"a": 1, "b": None}},
        "stepsize": 0.0123,
        "best_stepsize": 0.0456,
    }
    _, text = write_and_read(tmp_path, bound=bound)
    parsed = Page(text)
    for shown in ("0.5625", "2.75", "met", "not met", "inf", "0.125", "a 1, b -", "start 36%", "noise 27%"):
        assert shown in parsed.texts, shown
    assert "stepsize of the run 0.0123, best by the bound 0.0456" in parsed.texts
    assert "the stepsize 0.0123 is above the largest for which bound B holds" in parsed.texts


@pytest.mark.parametrize("bound", [{}, {"A": {"value": None, "condition_met": None, "terms": {}}}])
def test_a_bound_with_missing_values_is_shown(tmp_path, bound):
    _, text = write_and_read(tmp_path, bound=bound)
    assert "measured" in Page(text).texts
