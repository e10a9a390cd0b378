"""A comparison of runs as one self-contained HTML page: no script, nothing loaded from elsewhere."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isnan, nan
from pathlib import Path

from PIL import Image

from drloss.evaluation.coco import METRICS, Evaluation, percent, signed
from drloss.evaluation.densities import ScoreHistogram
from drloss.io.atomic import write_text
from drloss.studies.report import figures, page


@dataclass(frozen=True)
class RunSummary:
    """What a report shows of one run.

    Attributes:
        name: what the report calls it, such as ``"DR"``.
        loss: its loss by the name of the command line; it says the colour.
        evaluation: on the split that all runs of the report are evaluated on.
        sweep: what :func:`drloss.evaluation.thresholds.threshold_sweep` returned, the same thresholds for all runs.
        histogram: scores of the candidates of that split; None where they were not gathered.
        curves: iterations and values of ``loss``, ``loss_cls``, ``loss_box``, ``expected_pos``, ``expected_neg`` and
            ``AP50``; those that are missing are not shown, others are not looked at.
        settings: setting to value.
        seconds: that training took; NaN where that is not known.
        iterations: that training took.
    """

    name: str
    loss: str
    evaluation: Evaluation
    sweep: Sequence[Mapping[str, float]]
    histogram: ScoreHistogram | None
    curves: dict[str, tuple[list[float], list[float]]]
    settings: dict[str, str]
    seconds: float
    iterations: int


def write_report(
    path: Path,
    runs: Sequence[RunSummary],
    *,
    title: str,
    facts: dict[str, str],
    mosaic: Image.Image | None,
    conclusion: str | None = None,
) -> None:
    """Write the page, atomically.

    Args:
        path: HTML file to write.
        runs: at least one; every table and figure has them in this order.
        title: of the page.
        facts: about the data and the machine; ``"data"`` up to its first colon and space is named in the headline.
        mosaic: image of ``1 + len(runs)`` columns, which are ground truth and the predictions of each run; None
            leaves the section out.
        conclusion: what to add below the headline.

    Raises:
        ValueError: if there is no run.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    told = re.sub(r"(AP\d*) (?=[\d–])", r"\1&nbsp;", escape(headline(runs, facts)))
    top = [f'<p class="kicker">{escape(title)}</p>', f"<h1>{told}</h1>"]
    if conclusion:
        top.append(page.paragraph(conclusion, "conclusion"))
    parts = [
        f"<header>{''.join(top)}</header>",
        _cards(runs),
        average_precision(runs),
        thresholds(runs),
        training(runs),
        densities(runs),
        precision_recall(runs),
        predictions(runs, mosaic),
        settings(runs),
        page.section("environment", "Data and environment", page.text_table(list(facts.items()))) if facts else "",
    ]
    write_text(path, page.page(title, "\n".join(filter(None, parts))))


def headline(runs: Sequence[RunSummary], facts: Mapping[str, str]) -> str:
    """What the numbers say, in a sentence, and how far it reaches."""
    ranked = sorted(runs, key=lambda r: -_or(r.evaluation.metrics["AP"], -1))
    counts = sorted({r.iterations for r in runs})
    iterations = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    data = facts.get("data", "").partition(": ")[0]
    where = f" on {data}" if data else ""

    def reached(run: RunSummary) -> str:
        ap, ap50 = (percent(run.evaluation.metrics[m]) for m in ("AP", "AP50"))
        return f"AP {ap} (AP50 {ap50})"

    first, *others = ranked
    rest = [f"{run.name} {reached(run)}" for run in others]
    words = ", ".join([f"{first.name} reaches {reached(first)}", *rest[:-1]])
    if rest:
        words += f" and {rest[-1]}"
    scope = "one run" if len(runs) == 1 else "one run of each"
    return f"After {iterations} iterations{where}, {words}: {scope}, no evidence beyond this data and budget."


def _cards(runs: Sequence[RunSummary]) -> str:
    cards = []
    for run, colour in zip(runs, _colours(runs), strict=True):
        metrics = run.evaluation.metrics
        cards.append(
            f'<div class="card" style="--colour:{colour}"><b>{escape(run.name)}</b>'
            f'<div class="number">{percent(metrics["AP"])} <small>AP</small></div>'
            f'<div class="quiet">AP50 {percent(metrics["AP50"])}, AP75 {percent(metrics["AP75"])}<br>'
            f"{run.iterations} iterations in {_duration(run.seconds)}</div></div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def average_precision(runs: Sequence[RunSummary]) -> str:
    """Section: the six metrics, in total and per class."""
    head = f"<tr><th>loss</th>{''.join(f'<th>{m}</th>' for m in METRICS)}</tr>"
    table = [[run.evaluation.metrics[m] for m in METRICS] for run in runs]
    best = [_best([row[c] for row in table]) for c in range(len(METRICS))]
    rows = []
    for run, colour, values in zip(runs, _colours(runs), table, strict=True):
        cells = "".join(_cell(v, v_best) for v, v_best in zip(values, best, strict=True))
        rows.append(f"<tr>{page.row_name(run.name, colour)}{cells}</tr>")
    if len(runs) == 2:
        # The first run is the one to beat.
        cells = "".join(f"<td>{signed(b - a)}</td>" for a, b in zip(*table, strict=True))
        rows.append(f'<tr class="difference">{page.row_name(f"{runs[1].name} − {runs[0].name}")}{cells}</tr>')
    names = list(runs[0].evaluation.per_class)
    per_class = []
    for name in names:
        pairs = [[run.evaluation.per_class.get(name, {}).get(m, nan) for m in ("AP", "AP50")] for run in runs]
        tops = [_best([pair[c] for pair in pairs]) for c in range(2)]
        cells = "".join(_cell(p[0], tops[0], start=True) + _cell(p[1], tops[1]) for p in pairs)
        per_class.append(f"<tr>{page.row_name(name)}{cells}</tr>")
    return page.section(
        "ap",
        "Average precision",
        page.paragraph(
            "In percent, higher is better, the best in bold. AP is the mean over the IoU thresholds .50 to .95; "
            "AP50 and AP75 ask for an overlap of at least .50 and .75; APs, APm and APl count small, medium and "
            "large objects (below 32², up to 96² and above 96² square pixels). A dash: no object of that kind.",
            "quiet",
        ),
        page.number_table(head, rows),
        "<h3>Per class</h3>",
        page.number_table(_grouped_head("class", runs, ("AP", "AP50")), per_class),
    )


def thresholds(runs: Sequence[RunSummary]) -> str:
    """Section: metrics against the score threshold (Table 5)."""
    rows = []
    for index, record in enumerate(runs[0].sweep):
        best = [_best([run.sweep[index][m] for run in runs]) for m in ("AP", "AP50")]
        cells = ""
        for run in runs:
            own = run.sweep[index]
            cells += _cell(own["AP"], best[0], start=True) + _cell(own["AP50"], best[1])
            cells += f"<td>{own['detections_per_image']:.1f}</td>"
        rows.append(f"<tr><th>{record['threshold']:g}</th>{cells}</tr>")
    table = page.number_table(_grouped_head("above", runs, ("AP", "AP50", "dets")), rows)
    drawn = figures.threshold_curves([(run.name, run.loss, run.sweep) for run in runs])
    svg = figures.to_svg(drawn, "thresholds", "AP against score threshold, one line per run")
    caption = "A flat line: the threshold may be chosen freely. A falling line: objects are lost."
    few = len(runs) <= 2
    curves = page.figure(svg, caption, single=not few)
    return page.section(
        "thresholds",
        "AP against the score threshold",
        page.paragraph(
            "Detections that do not score above the threshold are dropped. A detector whose objects score high keeps "
            "its AP as the threshold rises (the paper's Table 5); “dets” is the number of detections left per image.",
            "quiet",
        ),
        page.grid([table, curves]) if few else f"{table}\n{curves}",
    )


CURVES = {
    "loss_cls": ("classification loss", "Each loss has its own scale: look at the shape, not at which is lower."),
    "loss_box": ("box loss", "The same loss for every run, so that heights can be compared."),
    "loss": ("total loss", "Weighted sum of the parts: heights cannot be compared between losses."),
    "AP50": ("AP50 (%)", "On the validation images, during training."),
}


def training(runs: Sequence[RunSummary]) -> str:
    """Sections: losses and expected scores over training."""
    drawn = []
    for name, (label, caption) in CURVES.items():
        series = _series(runs, name)
        if series:
            svg = figures.to_svg(figures.training_curves(series, label), f"curve-{name}", f"{label} over training")
            drawn.append(page.figure(svg, f"{label[0].upper()}{label[1:]}. {caption}"))
    parts = []
    if drawn:
        note = "Light: every recorded value. Bold: their running mean. The first values may lie above the frame."
        parts.append(page.section("curves", "Training", page.paragraph(note, "quiet"), page.grid(drawn)))
    positive, negative = _series(runs, "expected_pos"), _series(runs, "expected_neg")
    if positive and [s.name for s in positive] == [s.name for s in negative]:
        svg = figures.to_svg(
            figures.expected_scores(positive, negative),
            "expected",
            "expected scores over training, two lines per run",
        )
        caption = (
            "P̂₊ (solid) is the expected score of an image's positives, P̂₋ (dashed) that of its negatives, weighted "
            "towards the hardest as in DR's equations. DR trains on the distance between the two lines of a "
            "colour: the further apart they are, the better positives rank above negatives."
        )
        if any(run.loss.startswith("dr:") for run in runs) and len(runs) > 1:
            caption += (
                " They are as each run logged them: with the λ, scope and other parameters of its own DR loss, DR's "
                "defaults for another loss. Where those differ, so do the quantities: look at how each pair of lines "
                "parts, not at which run's is higher."
            )
        parts.append(page.section("expected", "Expected scores P̂₊ and P̂₋", page.figure(svg, caption, single=True)))
    return "\n".join(parts)


def densities(runs: Sequence[RunSummary]) -> str:
    """Section: densities of the scores (Figure 4)."""
    known = [(run.name, run.loss, run.histogram) for run in runs if run.histogram is not None]
    if not known:
        return ""
    svg = figures.to_svg(figures.score_densities(known), "densities", "densities of positive and of negative scores")
    caption = (
        "Above: the scores of positive candidates (an anchor on an object, at the object's class); the further "
        "right, the better. Below, on a log scale: all other candidates, thousands for each positive; the "
        "steeper the fall from 0, the better. Dashed uprights are means. As Figure 4 of the paper."
    )
    return page.section("densities", "Score densities", page.figure(svg, caption, single=True))


def precision_recall(runs: Sequence[RunSummary]) -> str:
    """Section: precision against recall."""
    drawn = []
    for index, run in enumerate(runs):
        svg = figures.to_svg(
            figures.precision_recall(run.name, run.loss, run.evaluation, colour=_colours(runs)[index]),
            f"pr-{index}",
            f"precision against recall of {run.name}",
        )
        drawn.append(page.figure(svg, f"{run.name}: the area below a line is the AP50 of the mean, or of one class."))
    note = (
        "At an overlap of IoU .50. Going right, the score threshold falls: more objects are found (recall) and "
        "fewer of the detections are right (precision). Where a line drops to zero, the rest is never found."
    )
    parts = [page.paragraph(note, "quiet"), page.grid(drawn)]
    shown = figures.classes_in_panels([run.evaluation for run in runs])
    if len(shown) > 1:
        each = figures.class_precision_recall([(run.name, run.loss, run.evaluation) for run in runs])
        svg = figures.to_svg(each, "pr-classes", "precision against recall of each class, one line per run")
        caption = "The classes, a panel each: the area below a line is the AP50 of the class."
        objects = sum((precision > -1).all() for precision in runs[0].evaluation.precision)
        if objects > len(shown):
            half = len(shown) // 2
            caption += f" Of {objects} classes with objects the {half} of highest and the {half} of lowest AP50."
        parts.append(page.figure(svg, caption, single=True))
    return page.section("pr", "Precision and recall", *parts)


def predictions(runs: Sequence[RunSummary], mosaic: Image.Image | None, note: str = "") -> str:
    """Section: pictures; ``note`` says which they are, if not the first ones."""
    if mosaic is None:
        return ""
    names = ["Ground truth", *(run.name for run in runs)]
    heads = "".join(f"<span>{escape(name)}</span>" for name in names)
    # On a phone the labels inside the images would be too small to read: there the reader scrolls sideways.
    least = f'<div class="wide" style="--least:{15 * len(names)}rem"><div>'
    columns = f'<div class="columns" style="grid-template-columns:repeat({len(names)},1fr)">{heads}</div>'
    image = page.picture(mosaic, f"Images with boxes, in columns: {', '.join(names)}")
    caption = (
        "Images of the validation data, one a row. Each run shows its best-scored boxes, over all these data as many "
        "as there are objects. Look for objects without a box and for boxes on what is no object."
    )
    drawn = page.figure(f"{least}{columns}{image}</div></div>", note or caption)
    return page.section("predictions", "Predictions", drawn)


def settings(runs: Sequence[RunSummary]) -> str:
    """Section: what the runs have in common and what not."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    values = {key: [run.settings.get(key, "–") for run in runs] for key in keys}
    measured = [
        ["training time", *(_duration(run.seconds) for run in runs)],
        ["per iteration", *(per_iteration(run.seconds / max(1, run.iterations)) for run in runs)],
    ]
    differing = [[key, *row] for key, row in values.items() if len(set(row)) > 1]
    equal = [[key, row[0]] for key, row in values.items() if len(set(row)) == 1]
    head = ["", *(run.name for run in runs)]
    parts = [
        "<h3>What differs, and the time it took</h3>" if len(runs) > 1 else "",
        page.text_table(differing + measured, head),
    ]
    if equal:
        parts += ["<h3>What is equal</h3>" if len(runs) > 1 else "", page.text_table(equal)]
    return page.section("settings", "Settings", *filter(None, parts))


def per_iteration(seconds: float) -> str:
    """Seconds an iteration, a dash for NaN."""
    return "–" if isnan(seconds) else f"{seconds:.3g} s"


def _series(runs: Sequence[RunSummary], name: str) -> list[figures.Series]:
    return [figures.Series(r.name, r.loss, *r.curves[name]) for r in runs if len(r.curves.get(name, ([], []))[0]) > 1]


def _colours(runs: Sequence[RunSummary]) -> list[str]:
    return figures.colours([run.loss for run in runs])


def _grouped_head(first: str, runs: Sequence[RunSummary], columns: Sequence[str]) -> str:
    """Two rows: the runs, and the columns that each has."""
    names = "".join(
        f'<th colspan="{len(columns)}" class="start">{page.dot(colour)}{escape(run.name)}</th>'
        for run, colour in zip(runs, _colours(runs), strict=True)
    )
    own = "".join(f"<th>{column}</th>" for column in columns).replace("<th>", '<th class="start">', 1)
    below = own * len(runs)
    return f'<tr><th rowspan="2">{first}</th>{names}</tr><tr>{below}</tr>'


def _best(values: Sequence[float]) -> str | None:
    """The highest value as it is printed, or None where all are equal or there is but one."""
    shown = {percent(v) for v in values if not isnan(v)}
    return max(shown, key=float) if len(shown) > 1 else None


def _cell(value: float, best: str | None, *, start: bool = False) -> str:
    kinds = " ".join(k for k, on in (("best", percent(value) == best), ("start", start)) if on)
    return f'<td class="{kinds}">{percent(value)}</td>' if kinds else f"<td>{percent(value)}</td>"


def _or(value: float, other: float) -> float:
    return other if isnan(value) else value


def _duration(seconds: float) -> str:
    if isnan(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
