"""What the paper concludes from its tables, as comparisons of rows that a rerun confirms or does not.

Absolute AP depends on the data; which loss is ahead is what a rerun on other data can be held to.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from drloss.studies.paper.numbers import CONTROLS, Row, find_row, rows_of


@dataclass(frozen=True)
class Comparison:
    """The AP of ``ahead`` over that of ``behind``; of several rows their sum.

    Attributes:
        ahead, behind: rows, as many of one as of the other.
        share: of the AP of ``ahead`` that is compared.
        least: what the difference must exceed.
    """

    ahead: tuple[Row, ...]
    behind: tuple[Row, ...]
    share: float = 1.0
    least: float = 0.0

    @property
    def rows(self) -> tuple[Row, ...]:
        """All of its rows."""
        return self.ahead + self.behind

    def difference(self, ap: Callable[[Row], float]) -> float:
        """Ahead minus behind, given the AP of each row."""
        return self.share * sum(map(ap, self.ahead)) - sum(map(ap, self.behind))

    def confirmed_by(self, difference: float) -> bool:
        """Whether a difference in AP, ahead minus behind, confirms the comparison."""
        return difference > self.least


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper and the comparisons that it consists of.

    Attributes:
        table: that it is drawn from.
        text: in words.
        source: where the paper says so.
        comparisons: all of which it takes.
        on_other_data: whether it is of data that the other tables' runs have not seen.
    """

    table: str
    text: str
    source: str
    comparisons: tuple[Comparison, ...]
    on_other_data: bool = False


def _over(ahead: Row, behind: Row) -> Comparison:
    return Comparison((ahead,), (behind,))


def _claims() -> tuple[Claim, ...]:
    focal, hinge = find_row("table2", "Focal"), find_row("table2", "Hinge")
    smooth = [row for row in rows_of("table2") if row not in (focal, hinge)]
    plain, chosen = find_row("table1", "h₊ = e, h₋ = e, DR"), find_row("table1", "h₊ = e, h₋ = 3.5, DR")
    small = find_row("table1", "h₊ = 20, h₋ = 3.5, DR")
    every_pair, neg_only, dr = (find_row("table3", name) for name in ("All", "NegOnly", "DR"))
    worst_case = find_row("table3", "Worst case")
    six = find_row("table2", "L = 6, DR")
    by_threshold = [
        (find_row("table5", f"threshold {t:g}, DR"), find_row("table5", f"threshold {t:g}, Focal"))
        for t in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    (dr_low, focal_low), (dr_high, focal_high) = by_threshold[0], by_threshold[-1]
    by_scale = [
        (find_row("table6", f"scale {s}, DR"), find_row("table6", f"scale {s}, Focal"))
        for s in (400, 500, 600, 700, 800)
    ]
    larger = zip(by_scale[1:], by_scale, strict=False)
    controls = {row.name: row for row in rows_of(CONTROLS)}
    matched = "Table 2 with matched settings"
    pairing, lambdas, smoothness = (
        f"§4.3, effect of {what}" for what in ("pairing strategy", "λ₊ and λ₋", "smoothness")
    )
    margin, backbones = "§C, effect of large margin", ("ResNet-101-FPN", "ResNeXt-32x8d-101-FPN")
    rest = [row for row in rows_of("table1") if row is not chosen]
    others = [row for row in rows_of("table1") if row is not small]
    found: list[tuple[str, str, str, Iterable[Comparison]]] = [
        ("table1", "λ₊ = 1 and λ₋ = 0.1 outperform focal", lambdas, [_over(plain, focal)]),
        ("table1", "h₊ = e and h₋ = 3.5 are the best", lambdas, (_over(chosen, row) for row in rest)),
        ("table1", "the smallest λ₊ is the worst of all", lambdas, (_over(row, small) for row in others)),
        ("table2", "every smooth loss outperforms the hinge", smoothness, (_over(row, hinge) for row in smooth)),
        ("table2", "every smooth loss surpasses focal", smoothness, (_over(row, focal) for row in smooth)),
        ("table2", "L = 6 is the best", smoothness, (_over(six, row) for row in smooth if row is not six)),
        ("table3", "NegOnly is ahead of ranking all pairs", pairing, [_over(neg_only, every_pair)]),
        ("table3", "NegOnly outperforms focal", pairing, [_over(neg_only, focal)]),
        ("table3", "a distribution of positives improves NegOnly further", pairing, [_over(dr, neg_only)]),
        (
            *("table3", "the worst case (Eq. 5) fails: a tenth of DR's AP is ahead of it", pairing),
            [Comparison((dr,), (worst_case,), share=0.1)],
        ),
        (
            *("table4", "Dr. Retina improves RetinaNet with either backbone", "§4.4"),
            (_over(*(find_row("table4", f"{b}, {m}") for m in ("Dr. Retina", "RetinaNet"))) for b in backbones),
        ),
        (
            *("table4", "the multi-scale test improves Dr. Retina further with either backbone", "§4.4"),
            (
                _over(*(find_row("table4", f"{b}{test}, Dr. Retina") for test in (", multi-scale test", "")))
                for b in backbones
            ),
        ),
        ("table5", "DR is ahead of focal at every threshold", margin, (_over(*pair) for pair in by_threshold)),
        (
            *("table5", "from threshold 0.05 to 0.5 DR loses less than focal", margin),
            [Comparison((dr_high, focal_low), (dr_low, focal_high))],
        ),
        (
            *("table5", "DR keeps almost the same from 0.05 to 0.5: less than 1 AP is lost", margin),
            [Comparison((dr_high,), (dr_low,), least=-1.0)],
        ),
        (
            *("table6", "DR is ahead of focal at every scale", "§C, effect of image scale"),
            (_over(*pair) for pair in by_scale),
        ),
        ("table6", "a larger input is better for DR", "Table 6", (_over(a, b) for (a, _), (b, _) in larger)),
        (
            *("table7", "DR outperforms focal on another data set", "§C, comparison on PASCAL"),
            [_over(find_row("table7", "DR"), find_row("table7", "Focal"))],
        ),
        (
            *(CONTROLS, "with both per image, DR outperforms focal", matched),
            [_over(six, controls["focal:scope=per_image, Focal"])],
        ),
        (
            *(CONTROLS, "with both pooled, DR outperforms focal", matched),
            [_over(controls["dr:scope=pooled, DR"], focal)],
        ),
        (
            *(CONTROLS, "with the authors' detector settings, DR outperforms focal", matched),
            [_over(*(controls[f"authors' detector settings, {loss}"] for loss in ("DR", "Focal")))],
        ),
        (
            *(CONTROLS, "the multi-scale test improves DR further", "§4.4"),
            [_over(controls["multi-scale test, DR"], six)],
        ),
    ]
    return tuple(
        Claim(table, text, source, tuple(comparisons), on_other_data=table == "table7")
        for table, text, source, comparisons in found
    )


CLAIMS = _claims()
"""In the order of the tables."""
