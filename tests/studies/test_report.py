import re
from dataclasses import replace
from html.parser import HTMLParser
from math import nan

import pytest

from drloss.studies.report.sections import headline, write_report

SECTIONS = ("ap", "thresholds", "curves", "expected", "densities", "pr", "predictions", "settings", "environment")
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


@pytest.fixture(scope="module")
def written(two_runs, tmp_path_factory):
    runs, mosaic = two_runs
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, runs[::-1], title="Focal and DR", facts=FACTS, mosaic=mosaic, conclusion="It is so.")
    return path.read_text(encoding="utf-8")


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
        **dict.fromkeys(("ap", "predictions", "settings", "environment"), 0),
        **dict.fromkeys(("thresholds", "expected", "densities"), 1),
        "curves": 4,
        "pr": 3,
    }
    assert sum(tag == "img" for tag, _ in page.elements) == 1
    assert "It is so." in page.text


def test_ids_are_unique_and_the_page_adapts(written):
    ids = [a["id"] for _, a in Page(written).elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert 'name="viewport"' in written
    assert "prefers-color-scheme: dark" in written


def test_the_table_has_the_numbers_and_marks_the_best(two_runs, written):
    dr, focal = two_runs[0]
    rows = {row[0]: row[1:] for row in Page(written).rows if len(row) == 7}
    for run in (dr, focal):
        shown = [f"{v:.1f}" if v == v else "–" for v in run.evaluation.metrics.values()]  # noqa: PLR0124
        assert rows[run.name] == shown
    assert float(rows["DR"][0]) > float(rows["Focal"][0])
    ap = dr.evaluation.metrics["AP"]
    assert rows["DR − Focal"][0] == f"+{ap - focal.evaluation.metrics['AP']:.1f}"
    table = written.split('<section id="ap">')[1].split("</table>")[0]
    assert f'<td class="best">{ap:.1f}</td>' in table
    assert f'<td class="best">{focal.evaluation.metrics["AP"]:.1f}</td>' not in table


def test_settings_are_sorted_into_what_differs_and_what_is_equal(written):
    part = written.split('<section id="settings">')[1]
    differs, equal = part.split("What is equal")
    assert "smoothness=6" in differs
    assert "seed" not in differs
    assert "seed" in equal
    assert "smoothness" not in equal


def test_the_headline_states_numbers_data_and_scope(two_runs):
    dr, focal = two_runs[0]

    def reached(run):
        return f"AP {run.evaluation.metrics['AP']:.1f} (AP50 {run.evaluation.metrics['AP50']:.1f})"

    expected = f"After 900 iterations on shapes, DR reaches {reached(dr)} and Focal {reached(focal)}: one run of each"
    assert headline([focal, dr], FACTS).startswith(expected)
    single = headline([dr], {})
    assert single.startswith(f"After 900 iterations, DR reaches {reached(dr)}: one run, no evidence")
    assert "After 600 to 900 iterations" in headline([dr, replace(focal, iterations=600)], {})


def test_what_users_wrote_is_escaped(two_runs, tmp_path):
    evil = "<script>alert(1)</script>&'\""
    run = two_runs[0][0]
    evaluation = replace(
        run.evaluation, per_class={evil: run.evaluation.metrics}, precision=run.evaluation.precision[:1]
    )
    run = replace(run, name=evil, evaluation=evaluation, settings={evil: evil})
    facts = {"data": f"{evil}: x", evil: evil}
    path = tmp_path / "report.html"
    write_report(path, [run], title=evil, facts=facts, mosaic=two_runs[1], conclusion=evil)
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert Page(text).text.count(evil) >= 10


def test_where_runs_measure_other_expected_scores_that_is_said(two_runs, tmp_path):
    dr, focal = two_runs[0]
    path = tmp_path / "report.html"
    for runs, said in (([focal, dr], False), ([dr, replace(dr, name="other", loss="dr:neg_lambda=0.05")], True)):
        write_report(path, runs, title="t", facts={}, mosaic=None)
        assert ("with the λ, scope and other parameters of its own" in path.read_text(encoding="utf-8")) is said


def test_a_time_that_is_not_known_is_a_dash(two_runs, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, [replace(two_runs[0][0], seconds=nan)], title="t", facts={}, mosaic=None)
    rows = {row[0]: row[1:] for row in Page(path.read_text(encoding="utf-8")).rows}
    assert rows["training time"] == rows["per iteration"] == ["–"]


def test_what_was_not_measured_is_left_out(two_runs, tmp_path):
    """One run, no object, no curve, no histogram, no mosaic."""
    run = two_runs[0][0]
    none = dict.fromkeys(run.evaluation.metrics, nan)
    evaluation = replace(run.evaluation, metrics=none, per_class=dict.fromkeys(run.evaluation.per_class, none))
    sweep = [{**record, **none} for record in run.sweep]
    bare = replace(run, evaluation=evaluation, sweep=sweep, curves={}, histogram=None, settings={})
    path = tmp_path / "report.html"
    write_report(path, [bare], title="t", facts={}, mosaic=None)
    page = Page(path.read_text(encoding="utf-8"))
    assert [a["id"] for tag, a in page.elements if tag == "section"] == ["ap", "thresholds", "pr", "settings"]
    assert "nan" not in page.text.lower()


def test_three_runs_of_two_losses_fit(two_runs, tmp_path):
    dr, focal = two_runs[0]
    path = tmp_path / "report.html"
    write_report(path, [focal, dr, replace(dr, name="DR again")], title="t", facts=FACTS, mosaic=None)
    rows = [row[0] for row in Page(path.read_text(encoding="utf-8")).rows]
    assert rows[1:4] == ["Focal", "DR", "DR again"]
    assert not any("−" in name for name in rows)


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        write_report(tmp_path / "report.html", [], title="t", facts={}, mosaic=None)
    assert list(tmp_path.iterdir()) == []
