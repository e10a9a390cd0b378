"""The page of ``drloss compare``: the report of the runs, and what several seeds add to it."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isnan
from pathlib import Path

import numpy as np
from PIL import Image

from drloss.evaluation.coco import METRICS, percent
from drloss.evaluation.matching import calibration
from drloss.files import write_text
from drloss.studies import figures, page, report
from drloss.studies.differences import Contender, Difference, recommended_threshold, summary

FAIRNESS = (
    "For each seed the runs have the same initial weights but for the classifier's bias, the same order of images, "
    "augmentation, schedule, learning rate and budget; each loss has its own best-known prior and weight. The focal "
    "loss of an image is divided by that image's positives; the DR loss is divided by nothing."
)


def write_page(
    path: Path,
    contenders: Sequence[Contender],
    differences: Sequence[Difference],
    told: Sequence[str],
    *,
    name: str,
    facts: dict[str, str],
    settings: Mapping[str, dict[str, str]],
    gallery: Image.Image,
) -> None:
    """Write the page, atomically.

    Args:
        path: HTML file to write.
        contenders: at least one; the first is the one to beat.
        differences: of each further one to the first.
        told: a verdict for each difference.
        name: title of the page.
        facts: about data and machine.
        settings: of each loss by its spec.
        gallery: image of ``1 + len(contenders)`` columns, truth and predictions.
    """
    runs = [summary(contender, settings[contender.spec]) for contender in contenders]
    headline = told[0] if told else f"{contenders[0].title} reaches AP {percent(contenders[0].mean('AP'))}."
    parts = [
        f'<header><p class="kicker">{escape(name)}</p><h1>{escape(headline)}</h1>'
        f"{''.join(map(page.paragraph, told[1:]))}{_against(contenders)}"
        f"{page.paragraph(FAIRNESS, 'conclusion')}</header>",
        _cards(contenders),
        _seeds(contenders, differences),
        report.average_precision(runs),
        _class_differences(contenders),
        report.thresholds(runs),
        _deployment(contenders),
        _calibration(contenders),
        report.densities(runs),
        report.training(runs),
        report.precision_recall(runs),
        report.predictions(runs, gallery, GALLERY),
        _cost(contenders),
        report.settings(runs),
        page.section("environment", "Data and environment", page.text_table(list(facts.items()))),
    ]
    write_text(path, page.page(name, "\n".join(filter(None, parts))))


GALLERY = (
    "The images on which the first two differ most: objects found minus false detections, of the first seed. Each "
    "run shows its best-scored boxes, over all these data as many as there are objects."
)


def _colours(contenders: Sequence[Contender]) -> list[str]:
    return figures.colours([c.spec for c in contenders])


def plus_minus(mean: float, spread: float) -> str:
    """A mean and a standard deviation, as tables show them."""
    return percent(mean) if isnan(mean) or isnan(spread) else f"{mean:.1f} ± {spread:.1f}"


def _against(contenders: Sequence[Contender]) -> str:
    return page.paragraph(f"Each is compared with {contenders[0].title}.") if len(contenders) > 2 else ""


def _cards(contenders: Sequence[Contender]) -> str:
    cards = []
    for contender, colour in zip(contenders, _colours(contenders), strict=True):
        seeds = len(contender.runs)
        cards.append(
            f'<div class="card" style="--colour:{colour}"><b>{escape(contender.title)}</b>'
            f'<div class="number">{percent(contender.mean("AP"))} <small>AP</small></div>'
            f'<div class="quiet">AP50 {percent(contender.mean("AP50"))}, AP75 {percent(contender.mean("AP75"))}<br>'
            f"{'mean of ' if seeds > 1 else ''}{seeds} run{'s' if seeds > 1 else ''}, "
            f"{contender.runs[0].iterations} iterations each</div></div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _seeds(contenders: Sequence[Contender], differences: Sequence[Difference]) -> str:
    seeds = [run.seed for run in contenders[0].runs]
    head = f"<tr><th>loss</th>{''.join(f'<th>{m}</th>' for m in METRICS)}</tr>"
    rows = [
        f"<tr>{page.row_name(c.title, colour)}"
        + "".join(f"<td>{plus_minus(c.mean(m), c.spread(m))}</td>" for m in METRICS)
        + "</tr>"
        for c, colour in zip(contenders, _colours(contenders), strict=True)
    ]
    one = (
        f"<tr><th>AP with seed</th>{''.join(f'<th>{seed}</th>' for seed in seeds)}<th>mean</th><th>interval</th></tr>"
    )
    by_seed = [
        f"<tr>{page.row_name(c.title, colour)}"
        + "".join(f"<td>{percent(v)}</td>" for v in c.values("AP"))
        + f"<td>{percent(c.mean('AP'))}</td><td></td></tr>"
        for c, colour in zip(contenders, _colours(contenders), strict=True)
    ]
    titles = {c.spec: c.title for c in contenders}
    for d in differences:
        by_seed.append(
            f'<tr class="difference">{page.row_name(f"{titles[d.ahead]} − {titles[d.behind]}")}'
            + "".join(f"<td>{_signed(v)}</td>" for v in d.per_seed)
            + f"<td>{_signed(d.mean)}</td><td>{_signed(d.low)} to {_signed(d.high)}</td></tr>"
        )
    return page.section(
        "seeds",
        "Over the seeds",
        page.paragraph(
            "Mean ± standard deviation over seeds. The interval is a 95 % bootstrap interval of the mean difference "
            "over the images of the validation split, the same resampling for every run; it says how far the images "
            "decide. Two losses are told apart where it leaves out 0 and every seed agrees in sign. The ± beside a "
            "difference in the headline is half of its 95 % interval over the seeds (Student's t), which says how "
            "far other seeds might: where it is larger than the difference, more seeds are needed.",
            "quiet",
        ),
        page.number_table(head, rows),
        page.number_table(one, by_seed),
    )


def _class_differences(contenders: Sequence[Contender]) -> str:
    if len(contenders) < 2:
        return ""
    first = contenders[0]
    names = list(first.runs[0].evaluation.per_class)
    drawn = []
    for index, other in enumerate(contenders[1:]):
        gaps = [_class_mean(other, n) - _class_mean(first, n) for n in names]
        svg = figures.to_svg(
            figures.class_differences(names, gaps, _colours(contenders)[index + 1]),
            f"classes-{index}",
            f"AP of {other.title} minus AP of {first.title}, per class",
        )
        caption = f"{other.title} minus {first.title}: AP per class, mean over seeds."
        if sum(not isnan(gap) for gap in gaps) > figures.CLASSES:
            caption += f" Of {len(gaps)} classes the {figures.CLASSES // 2} at either end."
        drawn.append(page.figure(svg, caption, single=len(contenders) == 2))
    return page.section("classes", "Per-class differences", page.grid(drawn) if len(drawn) > 1 else drawn[0])


def _class_mean(contender: Contender, name: str) -> float:
    return float(np.mean([run.evaluation.per_class[name]["AP"] for run in contender.runs]))


def _deployment(contenders: Sequence[Contender]) -> str:
    """Candidates that reach NMS and the time of post-processing, at each threshold."""
    if any("candidates" not in run.sweep[0] for c in contenders for run in c.runs):
        return ""
    names = "".join(
        f'<th colspan="3" class="start">{page.dot(colour)}{escape(c.title)}</th>'
        for c, colour in zip(contenders, _colours(contenders), strict=True)
    )
    below = '<th class="start">AP</th><th>to NMS</th><th>ms</th>' * len(contenders)
    rows = []
    for i, record in enumerate(contenders[0].runs[0].sweep):
        cells = ""
        for c in contenders:
            ap, candidates, ms = (
                float(np.mean([r.sweep[i][key] for r in c.runs])) for key in ("AP", "candidates", "postprocess_ms")
            )
            cells += f'<td class="start">{percent(ap)}</td><td>{candidates:.0f}</td><td>{ms:.1f}</td>'
        rows.append(f"<tr><th>{record['threshold']:g}</th>{cells}</tr>")
    advice = "; ".join(f"{c.title}: {recommended_threshold(c):g}" for c in contenders)
    return page.section(
        "deployment",
        "What a threshold buys at deployment",
        page.paragraph(
            "Candidates of an image that reach non-maximum suppression, and milliseconds from logits to detections, "
            f"at each threshold. Recommended, as the highest that costs at most 0.2 AP: {advice}.",
            "quiet",
        ),
        page.number_table(f'<tr><th rowspan="2">above</th>{names}</tr><tr>{below}</tr>', rows),
    )


def _calibration(contenders: Sequence[Contender]) -> str:
    curves = [(c.title, c.spec, calibration(c.runs[0].matches)) for c in contenders]
    errors = [float(np.mean([calibration(run.matches).error for run in c.runs])) for c in contenders]
    svg = figures.to_svg(
        figures.reliability([(name, spec, curve.score, curve.precision) for name, spec, curve in curves]),
        "calibration",
        "share of right detections against their score",
    )
    said = "; ".join(
        f"{c.title} {error:.3f}" for c, error in zip(contenders, errors, strict=True) if not isnan(error)
    )
    caption = (
        "How often a detection of a score is right, at IoU .50: on the dotted line a score is a probability. "
        f"Expected calibration error, over the detections and the seeds: {said}. The curve is that of the first seed."
    )
    return page.section("calibration", "Calibration", page.figure(svg, caption, single=True))


def _cost(contenders: Sequence[Contender]) -> str:
    head = ["", *(c.title for c in contenders)]
    rows = [
        [
            "training, per iteration",
            *(f"{np.mean([r.seconds / r.iterations for r in c.runs]):.3g} s" for c in contenders),
        ]
    ]
    known = [c.runs[0].cost for c in contenders]
    if all(known):
        rows += [
            ["one step alone", *(f"{cost['step_ms']:.0f} ms for {cost['images']:.0f} images" for cost in known)],
            ["of it the classification loss", *(f"{cost['loss_ms'] / cost['step_ms']:.1%}" for cost in known)],
            ["peak memory of the step", *(f"{cost['peak_mb']:.0f} MB" for cost in known)],
        ]
    return page.section(
        "cost",
        "Cost",
        page.paragraph(
            "Seconds per iteration as the runs logged them, beside each other; the other rows are measured on one "
            "run of each loss, alone, forward and backward.",
            "quiet",
        ),
        page.text_table(rows, head),
    )


def _signed(difference: float) -> str:
    return "–" if isnan(difference) else f"{difference:+.1f}".replace("-", "−")
