"""The Markdown and the JSON file of a comparison."""

import json
from dataclasses import replace

import numpy as np
import pytest

from drloss.evaluation.coco import METRICS, signed
from drloss.evaluation.matching import calibration
from drloss.io.atomic import write_json
from drloss.studies.compare import exports as compare_exports
from drloss.studies.compare import page as compare_page
from drloss.studies.compare.differences import (
    Comparison,
    Contender,
    conclusion,
    difference,
)


def test_markdown_and_json_hold_what_the_page_shows(contenders):
    found = [difference(other, contenders[0], resamples=20) for other in contenders[1:]]
    settings = {c.spec: {"loss": f"Loss({c.spec})", "preset": "cpu"} for c in contenders}
    said = [conclusion(d, 24) for d in found]
    comparison = Comparison("a on b", contenders, found, said, {"data": "x"}, settings)
    text = compare_exports.markdown(comparison)
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    first, dr, _ = contenders
    assert f"| {dr.mean('AP'):.1f} ± {dr.spread('AP'):.1f} |" in rows["DR"]
    assert compare_page.interval(found[0]) in rows["DR − Focal"]
    assert rows["0.2"].count("|") == 2 + 3 * 3
    assert f"| {dr.sweep()[1]['AP']:.1f} | 200 | 12.3 |" in rows["0.2"]
    errors = [f"{np.mean([calibration(run.matches).error for run in c.runs]):.3f}" for c in contenders]
    assert rows["expected calibration error"].endswith(" | ".join(["", *errors]) + " |")
    assert rows["peak memory of the step"].count("2210 MB") == 3
    assert rows["of it the classification loss"].count("4.2%") == 3
    last = [np.mean([run.curves["expected_pos"][1][-1] for run in c.runs]) for c in contenders]
    assert rows["expected score P̂₊, last logged"].endswith(" | ".join(["", *(f"{v:.3f}" for v in last)]) + " |")
    name = next(iter(first.runs[0].evaluation.per_class))
    assert signed(dr.class_mean(name) - first.class_mean(name)) in rows[name]
    assert "Loss(dr:neg_lambda=0.05)" in text
    kept = compare_exports.to_json(comparison)
    for told_of, c in zip(kept["losses"], contenders, strict=True):
        assert told_of["mean"] == {m: pytest.approx(c.mean(m), nan_ok=True) for m in METRICS}
        assert sum(told_of["densities"]["positive"]) == sum(run.histogram.positive.sum() for run in c.runs)
        assert len(told_of["curves"]["expected_neg"]["value"]) == len(c.runs[0].curves["expected_neg"][0])
        assert told_of["settings"] == settings[c.spec]
    assert len(kept["runs"][0]["reliability"]["score"]) == 10


def test_a_class_may_be_called_as_json_calls_what_is_no_number(contenders, tmp_path):
    run = contenders[0].runs[0]
    names = list(run.evaluation.per_class)
    per_class = {{names[0]: "BaNaNa"}.get(n, n): v for n, v in run.evaluation.per_class.items()}
    one = Contender("focal", [replace(run, evaluation=replace(run.evaluation, per_class=per_class))])
    write_json(tmp_path / "r.json", compare_exports.to_json(Comparison("one", [one], [], [], {}, {"focal": {}})))
    kept = json.loads((tmp_path / "r.json").read_text())
    assert "BaNaNa" in kept["runs"][0]["evaluation"]["per_class"]
    assert kept["losses"][0]["spread"]["AP"] is None
