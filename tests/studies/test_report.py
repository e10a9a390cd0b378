import re
from dataclasses import replace
from html.parser import HTMLParser
from math import isnan, nan

import pytest

from drloss.evaluation.coco import METRICS
from drloss.studies.compare.differences import Comparison, Contender, conclusion, difference
from drloss.studies.compare.page import write_page
from drloss.studies.report.gallery import gallery
from studies.conftest import fake_result, read_shapes

SECTIONS = (
    *("seeds", "ap", "classes", "thresholds", "deployment", "calibration", "densities", "curves", "expected", "pr"),
    *("predictions", "cost", "settings", "environment"),
)
FACTS = {"data": "shapes: 24 images", "device": "cpu, 4 threads"}
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Elements with their attributes, the text of the rows of tables, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.rows, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


SETTINGS = {
    "focal": {"loss": "FocalLoss(gamma=2)", "seed": "0"},
    "dr": {"loss": "DRLoss(pairing=dr, surrogate=logistic, smoothness=6)", "seed": "0"},
}


@pytest.fixture(scope="module")
def two():
    """Focal loss, and DR, which is better; one seed each."""
    data = read_shapes()
    return [
        Contender("focal", [fake_result(data, seed=2, shift=0.09, found=0.6)]),
        Contender("dr", [fake_result(data, seed=1, shift=0.05, found=0.95)]),
    ]


def write(path, contenders, *, name="Focal and DR", facts=FACTS, settings=SETTINGS):
    found = [difference(other, contenders[0], resamples=20) for other in contenders[1:]]
    conclusions = [conclusion(d, 24) for d in found]
    pictures = gallery(read_shapes(), [c.runs[0].detections for c in contenders], [0])
    settings = {c.spec: settings.get(c.spec, {}) for c in contenders}
    write_page(path, Comparison(name, contenders, found, conclusions, facts, settings), pictures)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(two, tmp_path_factory):
    return write(tmp_path_factory.mktemp("report") / "report.html", two)


def changed(contender, spec=None, **values):
    return Contender(spec or contender.spec, [replace(run, **values) for run in contender.runs])


def test_the_page_stands_alone(written):
    page = Page(written)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name.startswith("xmlns"):
                continue
            assert "://" not in (value or ""), f"<{tag} {name}> refers elsewhere"
            assert not name.startswith("on"), "no script in attributes"
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/", "#"))
    style = "".join(re.findall(r"<style.*?</style>", written, flags=re.DOTALL))
    assert "@import" not in style
    assert not re.search(r"url\((?!#)", written)


def test_every_section_is_there_once_with_its_figures(written):
    page = Page(written)
    assert [a["id"] for tag, a in page.elements if tag == "section"] == list(SECTIONS)
    parts = re.split(r'<section id="', written)[1:]
    figures = {part.partition('"')[0]: part.count("<svg ") for part in parts}
    assert figures == {
        **dict.fromkeys(SECTIONS, 0),
        **dict.fromkeys(("classes", "thresholds", "calibration", "expected", "densities"), 1),
        "curves": 4,
        "pr": 3,
    }
    assert sum(tag == "img" for tag, _ in page.elements) == 1


def test_ids_are_unique_and_the_page_adapts(written):
    ids = [a["id"] for _, a in Page(written).elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert 'name="viewport"' in written
    assert "prefers-color-scheme: dark" in written


def test_the_table_has_the_numbers_and_marks_the_best(two, written):
    table = written.split('<section id="ap">')[1].split("<table>")[1].split("</table>")[0]
    rows = {row[0]: row[1:] for row in Page(f"<table>{table}</table>").rows}
    for contender in two:
        values = [contender.mean(metric) for metric in METRICS]
        assert rows[contender.title] == ["–" if isnan(v) else f"{v:.1f}" for v in values]
    ap, less = two[1].mean("AP"), two[0].mean("AP")
    assert ap > less
    assert rows["DR − Focal"][0] == f"+{ap - less:.1f}"
    assert f'<td class="best">{ap:.1f}</td>' in table
    assert f'<td class="best">{less:.1f}</td>' not in table


def test_settings_are_sorted_into_what_differs_and_what_is_equal(written):
    part = written.split('<section id="settings">')[1]
    differs, equal = part.split("What is equal")
    assert "smoothness=6" in differs
    assert "seed" not in differs
    assert "seed" in equal
    assert "smoothness" not in equal


def test_what_users_wrote_is_escaped(two, tmp_path):
    evil = "<script>alert(1)</script>&'\""
    run = two[0].runs[0]
    evaluation = replace(
        run.evaluation, per_class={evil: run.evaluation.metrics}, precision=run.evaluation.precision[:1]
    )
    evil_run = changed(two[0], f"focal:{evil}", evaluation=evaluation)
    settings = {evil_run.spec: {evil: evil}, two[0].spec: {evil: evil}}
    facts = {"data": f"{evil}: x", evil: evil}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drloss.studies.compare.page.fairness", lambda specs: evil)
        text = write(tmp_path / "report.html", [evil_run], name=evil, facts=facts, settings=settings)
    assert "<script" not in text
    assert Page(text).text.count(evil) >= 10


@pytest.mark.slow
def test_where_runs_measure_other_expected_scores_that_is_said(two, tmp_path):
    dr = two[1]
    path = tmp_path / "report.html"
    for contenders, said in ((two, False), ([dr, changed(dr, "dr:neg_lambda=0.05")], True)):
        assert ("with the λ, scope and other parameters of its own" in write(path, contenders)) is said


def test_a_time_that_is_not_known_is_a_dash(two, tmp_path):
    text = write(tmp_path / "report.html", [changed(two[0], seconds=nan)])
    rows = {row[0]: row[1:] for row in Page(text).rows}
    assert rows["training time"] == rows["per iteration"] == ["–"]


def test_what_was_not_measured_is_left_out(two, tmp_path):
    """One run, no object, no curve, no cost."""
    run = two[0].runs[0]
    none = dict.fromkeys(run.evaluation.metrics, nan)
    evaluation = replace(run.evaluation, metrics=none, per_class=dict.fromkeys(run.evaluation.per_class, none))
    sweep = [{k: v for k, v in {**r, **none}.items() if k not in ("candidates", "postprocess_ms")} for r in run.sweep]
    bare = changed(two[0], evaluation=evaluation, sweep=sweep, curves={}, cost={})
    page = Page(write(tmp_path / "report.html", [bare], settings={}))
    sections = [a["id"] for tag, a in page.elements if tag == "section"]
    assert sections == [s for s in SECTIONS if s not in ("classes", "deployment", "curves", "expected")]
    assert "nan" not in page.text.lower()


def test_three_losses_fit_and_each_is_compared_with_the_first(two, tmp_path):
    focal, dr = two
    text = write(tmp_path / "report.html", [focal, dr, changed(dr, "dr:margin=0.4")])
    table = text.split('<section id="ap">')[1].split("<table>")[1].split("</table>")[0]
    rows = [row[0] for row in Page(f"<table>{table}</table>").rows]
    assert rows[1:] == ["Focal", "DR", "DR (margin=0.4)"]
    assert "Each is compared with Focal." in text


def test_a_report_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Comparison("t", [], [], [], {}, {})
