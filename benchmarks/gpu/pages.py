"""What docs/speed.md shows of a record."""

from typing import Any

Row = dict[str, Any]
_NUMBERS = ("forward_s", "backward_s", "both_s", "x_focal", "x_floor", "memory", "floor_s")


def loss_record(record: Row) -> Row | None:
    """The losses of a record, in the form of those of ``benchmarks.loss``; None if they were not measured."""
    about = _found(record, "machine").get("versions", {})
    rows = [row for row in _found(record, "loss").get("rows", []) if all(row.get(name) for name in _NUMBERS)]
    if not rows or "device" not in about:
        return None
    return {**about, "date": record["date"], "rows": rows, "gpu": record}


def sections(record: Row) -> list[str]:
    """Lines of docs/speed.md: correctness, whole steps, loading and training."""
    steps, runs = _found(record, "step").get("steps", {}), _found(record, "training").get("runs", [])
    lines = ["### Whole training steps", "", _correctness(_found(record, "correctness").get("summary")), ""]
    if steps:
        lines += [
            "ResNet-50, 800 × 1333 pixels, batch 16, 80 classes, synthetic images in the host's memory. Waits are",
            "how often the host waits for the device in a step.",
            "",
            "| model | images/s | ms of an image | waits | memory, GB |",
            "|---|---:|---:|---:|---:|",
            *(_step(name, row) for name, row in steps.items()),
            "",
        ]
    else:
        lines += ["Whole training steps: not run.", ""]
    loading = _found(record, "step").get("loading", {})
    if loading and all(isinstance(value, float) for value in loading.values()):
        said = ", ".join(f"{value:.0f} with {workers}" for workers, value in loading.items())
        lines += [f"Images a second that loading processes bring, JPEG files of 480 x 640: {said}.", ""]
    lines += ["### DR and focal loss on generated shapes", ""]
    if not runs:
        return [*lines, "Not run.", ""]
    steps_of_run = _found(record, "training").get("steps")
    return [
        *lines,
        f"Preset `cpu`, {steps_of_run} steps, same model, data and budget: training on the device works.",
        "",
        "| loss | seed | loss, first | loss, last | AP50 | AP |",
        "|---|---:|---:|---:|---:|---:|",
        *map(_run, runs),
        "",
    ]


def _found(record: Row, part: str) -> Row:
    found: Row = record.get("parts", {}).get(part, {}).get("found", {})
    return found


def _correctness(summary: Row | None) -> str:
    if not summary:
        return "Against the definition in float64: not run."
    few = f"{summary['run']} of {summary['cases']} cases (loss, layout, dtype, number of classes)"
    return f"Against the definition in float64, {few}: {summary['wrong']} were wrong."


def _step(name: str, row: Row) -> str:
    if "images_per_s" not in row:
        return f"| {name} | not run | | | |"
    rate, waits = row["images_per_s"], "" if row["waits"] is None else row["waits"]
    return f"| {name} | {rate:.1f} | {1e3 / rate:.1f} | {waits} | {row['peak_gb']:.1f} |"


def _run(row: Row) -> str:
    numbers = [row.get(name) for name in ("first_loss", "last_loss", "AP50", "AP")]
    if not all(isinstance(number, float) for number in numbers):
        return f"| {row['loss']} | {row['seed']} | not run | | | |"
    cells = " | ".join(f"{number:.{2 if i < 2 else 1}f}" for i, number in enumerate(numbers))
    return f"| {row['loss']} | {row['seed']} | {cells} |"
