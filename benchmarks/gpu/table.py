"""A short table of a record."""

from typing import Any

from benchmarks.gpu.notes import words

Row = dict[str, Any]


def table(record: Row) -> list[str]:
    """Lines for a terminal: how each part ended, and what it found in one line each."""
    lines = [f"{'part':<12}{'':<11}{'seconds':>8}  found"]
    for name, part in record.get("parts", {}).items():
        lines.append(f"{name:<12}{part['status']:<11}{part['seconds']:>8.0f}  {_first(part)}")
        shown = _SHOWN.get(name)
        try:
            lines += [f"    {line}" for line in (shown(part["found"]) if shown else [])]
        except (KeyError, TypeError, ValueError, IndexError) as error:  # findings of a part that was stopped
            lines.append(f"    incomplete: {error!r}")
    return lines


def _first(part: Row) -> str:
    if part.get("error"):
        return part["error"].strip().splitlines()[-1][:100]
    failed = [name for name, value in part["found"].items() if isinstance(value, dict) and "error" in value]
    left_out = [name for name, value in part["found"].items() if isinstance(value, dict) and "not_run" in value]
    words = [f"failed: {', '.join(failed)}"] if failed else []
    return "; ".join(words + ([f"not run: {', '.join(left_out)}"] if left_out else []))


def _machine(found: Row) -> list[str]:
    about = found.get("versions", {})
    return [", ".join(f"{key} {value}" for key, value in about.items()), f"TB/s: {found.get('copy')}"]


def _correctness(found: Row) -> list[str]:
    lines = [str(found.get("summary", "no summary"))]
    lines += [f"WRONG {row['case']}: {_short(row)}" for row in found.get("wrong", [])[:12]]
    special = found.get("special", {})
    return lines + [f"WRONG {name}: {value}" for name, value in special.items() if value is not True]


def _short(row: Row) -> str:
    return str(row.get("error") or {key: value for key, value in row.items() if key != "case"})[:150]


def _large(found: Row) -> list[str]:
    return [f"{name}: {str(_brief(value))[:150]}" for name, value in found.items()]


def _brief(value: Any) -> Any:
    if isinstance(value, dict):
        return words(value) if "error" in value or "not_run" in value else value
    return value


def _loss(found: Row) -> list[str]:
    lines = [
        f"{'loss':<32}{'setting':<24}{'fwd ms':>8}{'bwd ms':>8}{'x floor':>8}{'x focal':>8}{'host us':>9}{'mem':>6}"
    ]
    for row in found.get("rows", []):
        what = f"{row['loss']:<32}{row['dtype'] + ', batch ' + str(row['batch']):<24}"
        if "both_s" not in row:
            lines.append(f"{what}{words(row)}"[:120])
            continue
        cells = [f"{row[key] * 1e3:>8.3f}" for key in ("forward_s", "backward_s")]
        cells += [f"{row['x_floor']:>8.2f}", f"{row['x_focal']:>8.3f}" if row.get("x_focal") else f"{'-':>8}"]
        lines.append(what + "".join(cells) + f"{row['host_s'] * 1e6:>9.0f}{row['memory']:>6.2f}")
    return lines + [f"{name}: {str(found[name])[:200]}" for name in ("kernels", "compilations") if name in found]


def _step(found: Row) -> list[str]:
    lines = [f"{'model':<44}{'images/s':>10}{'ms/image':>10}{'waits':>7}{'GB':>7}"]
    for name, row in found.get("steps", {}).items():
        if "images_per_s" not in row:
            lines.append(f"{name:<44}{words(row)}"[:120])
            continue
        waits = "-" if row["waits"] is None else row["waits"]
        rate = row["images_per_s"]
        lines.append(f"{name:<44}{rate:>10.1f}{1e3 / rate:>10.2f}{waits:>7}{row['peak_gb']:>7.1f}")
    return [*lines, f"loading, images/s by workers: {found.get('loading')}"]


def _training(found: Row) -> list[str]:
    lines = []
    for row in found.get("runs", []):
        what = f"{row['loss']:<6} seed {row['seed']}"
        if "AP50" not in row:
            lines.append(f"{what}  {words(row)}"[:120])
            continue
        lines.append(f"{what}  loss {row['first_loss']:.3f} to {row['last_loss']:.3f}  AP50 {row['AP50']:.1f}")
    return lines


_SHOWN = {
    "machine": _machine,
    "correctness": _correctness,
    "large": _large,
    "loss": _loss,
    "step": _step,
    "training": _training,
}
