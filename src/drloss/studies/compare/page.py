"""The page of ``drloss compare``: the report of the runs, and what several seeds add to it."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

from PIL import Image

from drloss.evaluation.coco import METRICS, percent, signed
from drloss.evaluation.matching import calibration
from drloss.io.atomic import write_text
from drloss.studies.compare.differences import FEW, Contender, Difference, recommended_threshold, summary, title
from drloss.studies.report import figures, page
from drloss.studies.report import sections as report
from drloss.training.config import make_loss

FAIRNESS = (
    "For each seed the runs have the same initial weights but for the classifier's bias, the same order of images, "
    "augmentation, schedule, learning rate and budget; each loss has its own best-known prior and weight. "
)


def fairness(specs: Sequence[str]) -> str:
    """What is matched between some losses, and what each is divided by."""
    return FAIRNESS + " ".join(f"{title(spec)} {_divided(spec)}." for spec in specs)


def _divided(spec: str) -> str:
    options: dict[str, Any] = make_loss(spec).options  # type: ignore[assignment]
    scope = {"per_image": "each image", "pooled": "all images that a device takes at a time"}[options["scope"]]
    if "interpolate" in options:
        return f"is itself a mean over the positives of {scope}"
    if "normalizer" not in options:
        return f"ranks the candidates of {scope} and is divided by nothing"
    divisor = "their positives" if options["normalizer"] == "positives" else "nothing"
    return f"is summed over the candidates of {scope} and divided by {divisor}"


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
        f"{page.paragraph(fairness([c.spec for c in contenders]), 'conclusion')}</header>",
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
    "run shows its best-scored boxes, over all these data as many as there are objects; ignored boxes are none."
)


def _colours(contenders: Sequence[Contender]) -> list[str]:
    return figures.colours([c.spec for c in contenders])


def plus_minus(mean: float, spread: float) -> str:
    """A mean and a standard deviation, as tables show them."""
    return percent(mean) if isnan(mean) or isnan(spread) else f"{mean:.1f} ± {spread:.1f}"


def interval(difference: Difference) -> str:
    """That over the images, as tables show it."""
    low, high = difference.low, difference.high
    return "–" if isnan(low) else f"{signed(low)} to {signed(high)}"


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
            f"{'mean of ' if seeds > 1 else ''}{count(seeds, 'run')}, "
            f"{count(contender.runs[0].iterations, 'iteration')} each</div></div>"
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
    one = f"<tr><th>AP</th><th>mean</th><th>interval</th>{''.join(f'<th>seed {seed}</th>' for seed in seeds)}</tr>"
    by_seed = [
        f"<tr>{page.row_name(c.title, colour)}<td>{percent(c.mean('AP'))}</td><td></td>"
        + "".join(f"<td>{percent(v)}</td>" for v in c.values("AP"))
        + "</tr>"
        for c, colour in zip(contenders, _colours(contenders), strict=True)
    ]
    titles = {c.spec: c.title for c in contenders}
    for d in differences:
        by_seed.append(
            f'<tr class="difference">{page.row_name(f"{titles[d.ahead]} − {titles[d.behind]}")}'
            f"<td>{signed(d.mean)}</td><td>{interval(d)}</td>"
            + "".join(f"<td>{signed(v)}</td>" for v in d.per_seed)
            + "</tr>"
        )
    return page.section(
        "seeds",
        "Over the seeds",
        page.paragraph(
            "Mean ± standard deviation over seeds. The interval is a 95 % bootstrap interval of the mean difference "
            "over the images of the validation split, the same resampling for every run; it says how far the images "
            "decide, and one image has none. The ± beside a difference in the headline is half of its 95 % interval "
            "over the seeds (Student's t), which says how far other seeds might: where it is larger than the "
            "difference, more seeds are needed. Two losses are told apart where the interval over the images leaves "
            f"out 0 and so does that over the seeds or, up to {FEW} seeds, every seed agrees in sign.",
            "quiet",
        ),
        page.number_table(one, by_seed),
        page.number_table(head, rows),
    )


def _class_differences(contenders: Sequence[Contender]) -> str:
    if len(contenders) < 2:
        return ""
    first = contenders[0]
    names = list(first.runs[0].evaluation.per_class)
    drawn = []
    for index, other in enumerate(contenders[1:]):
        gaps = [other.class_mean(n) - first.class_mean(n) for n in names]
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


def recommended(contender: Contender) -> str:
    """The threshold to take, in words."""
    threshold = recommended_threshold(contender)
    return "none, nothing is found" if threshold is None else f"{threshold:g}"


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
    for records in zip(*(c.sweep() for c in contenders), strict=True):
        cells = ""
        for record in records:
            cells += f'<td class="start">{percent(record["AP"])}</td><td>{record["candidates"]:.0f}</td>'
            cells += f"<td>{record['postprocess_ms']:.1f}</td>"
        rows.append(f"<tr><th>{records[0]['threshold']:g}</th>{cells}</tr>")
    advice = "; ".join(f"{c.title}: {recommended(c)}" for c in contenders)
    return page.section(
        "deployment",
        "What a threshold buys at deployment",
        page.paragraph(
            "Candidates of an image that reach non-maximum suppression, and milliseconds from logits to detections, "
            "at each threshold, whatever the run's own. Recommended, as the highest that costs at most 0.2 AP, or "
            f"2 % of it where that is less: {advice}.",
            "quiet",
        ),
        page.number_table(f'<tr><th rowspan="2">above</th>{names}</tr><tr>{below}</tr>', rows),
    )


def _calibration(contenders: Sequence[Contender]) -> str:
    curves = [(c.title, c.spec, calibration(c.runs[0].matches)) for c in contenders]
    svg = figures.to_svg(
        figures.reliability([(name, spec, curve.score, curve.precision) for name, spec, curve in curves]),
        "calibration",
        "share of right detections against their score",
    )
    said = "; ".join(f"{c.title} {c.calibration_error:.3f}" for c in contenders if not isnan(c.calibration_error))
    caption = (
        "How often a detection of a score is right, at IoU .50: on the dotted line a score is a probability. "
        f"Expected calibration error, over the detections and the seeds: {said}. The curve is that of the first seed."
    )
    return page.section("calibration", "Calibration", page.figure(svg, caption, single=True))


def costs(contenders: Sequence[Contender]) -> list[list[str]]:
    """Rows of what each costs, the first cell their name; means over the seeds."""
    rows = [["training, per iteration", *(report.per_iteration(c.seconds_per_iteration) for c in contenders)]]
    known = [c.cost for c in contenders]
    if all(known):
        rows += [
            ["one step alone", *(f"{cost['step_ms']:.0f} ms for {count(cost['images'], 'image')}" for cost in known)],
            ["of it the classification loss", *(f"{cost['share']:.1%}" for cost in known)],
            ["peak memory of the step", *(f"{cost['peak_mb']:.0f} MB" for cost in known)],
        ]
    return rows


COST = (
    "Seconds per iteration as the runs logged them, beside each other; the other rows are measured alone, forward "
    "and backward, in the precision and memory format of the runs, not compiled. All are means over the seeds."
)


def count(number: float, what: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number:.0f} {what}" + ("" if number == 1 else "s")


def _cost(contenders: Sequence[Contender]) -> str:
    table = page.text_table(costs(contenders), ["", *(c.title for c in contenders)])
    return page.section("cost", "Cost", page.paragraph(COST, "quiet"), table)
