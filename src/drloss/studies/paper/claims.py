"""The paper's conclusions from its tables, as comparisons of rows that a rerun confirms or refutes.

AP itself depends on the data. Which loss is ahead can be checked on other data, too.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from drloss.studies.paper.names import CONTROLS
from drloss.studies.paper.numbers import Row, find_row, rows_of


@dataclass(frozen=True)
class Comparison:
    """A sum of the APs of ``ahead`` minus that of ``behind``.

    Attributes:
        ahead, behind: rows, equally many on each side.
        factor: multiplies the AP of ``ahead``.
        least: value that the difference must exceed.
    """

    ahead: tuple[Row, ...]
    behind: tuple[Row, ...]
    factor: float = 1.0
    least: float = 0.0

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows that are compared."""
        return self.ahead + self.behind

    def difference(self, ap: Callable[[Row], float]) -> float:
        """The difference, given the AP of each row."""
        return self.factor * sum(map(ap, self.ahead)) - sum(map(ap, self.behind))

    def confirmed_by(self, difference: float) -> bool:
        """Whether a difference confirms the comparison."""
        return difference > self.least


@dataclass(frozen=True)
class Claim:
    """A conclusion of the paper, and the comparisons that must all be confirmed for it to hold.

    Attributes:
        table: table of its rows.
        text: the conclusion, in words.
        cited_at: place in the paper.
        comparisons: comparisons of rows.
        on_other_data: whether it is about another data set than that of the other tables. If its runs were evaluated
            on the data of another table, it counts as not run.
    """

    table: str
    text: str
    cited_at: str
    comparisons: tuple[Comparison, ...]
    on_other_data: bool = False


def _over(ahead: Row, behind: Row) -> Comparison:
    return Comparison((ahead,), (behind,))


_LAMBDAS, _SMOOTHNESS, _PAIRING, _MARGIN = (
    *("§4.3, effect of λ₊ and λ₋", "§4.3, effect of smoothness", "§4.3, effect of pairing strategy"),
    "§C, effect of large margin",
)


def _over_each(ahead: Row, behind: Iterable[Row]) -> tuple[Comparison, ...]:
    return tuple(_over(ahead, row) for row in behind)


def _each_over(ahead: Iterable[Row], behind: Row) -> tuple[Comparison, ...]:
    return tuple(_over(row, behind) for row in ahead)


def _ablations() -> list[Claim]:
    """Claims of Tables 1 to 3."""
    focal, hinge, six = (find_row("table2", name) for name in ("Focal", "Hinge", "L = 6, DR"))
    smooth = [row for row in rows_of("table2") if row not in (focal, hinge)]
    plain, chosen, small = (
        find_row("table1", f"h₊ = {pos}, h₋ = {neg}, DR") for pos, neg in (("e", "e"), ("e", "3.5"), ("20", "3.5"))
    )
    every_pair, neg_only, dr, worst_case = (
        find_row("table3", name) for name in ("All", "NegOnly", "DR", "Worst case")
    )
    rest, others = ([row for row in rows_of("table1") if row is not own] for own in (chosen, small))
    return [
        Claim("table1", "λ₊ = 1 and λ₋ = 0.1 outperform focal", _LAMBDAS, (_over(plain, focal),)),
        Claim("table1", "h₊ = e and h₋ = 3.5 are the best", _LAMBDAS, _over_each(chosen, rest)),
        Claim("table1", "the smallest λ₊ is the worst of all", _LAMBDAS, _each_over(others, small)),
        Claim("table2", "every smooth loss outperforms the hinge", _SMOOTHNESS, _each_over(smooth, hinge)),
        Claim("table2", "every smooth loss surpasses focal", _SMOOTHNESS, _each_over(smooth, focal)),
        Claim("table2", "L = 6 is the best", _SMOOTHNESS, _over_each(six, [row for row in smooth if row is not six])),
        Claim("table3", "NegOnly is ahead of ranking all pairs", _PAIRING, (_over(neg_only, every_pair),)),
        Claim("table3", "NegOnly outperforms focal", _PAIRING, (_over(neg_only, focal),)),
        Claim("table3", "a distribution of positives improves NegOnly further", _PAIRING, (_over(dr, neg_only),)),
        Claim(
            *("table3", "the worst case (Eq. 5) fails: a tenth of DR's AP is ahead of it", _PAIRING),
            (Comparison((dr,), (worst_case,), factor=0.1),),
        ),
    ]


def _detectors() -> list[Claim]:
    """Claims of Table 4."""
    backbones = "ResNet-101-FPN", "ResNeXt-32x8d-101-FPN"
    single, several, rival = (
        [find_row("table4", f"{backbone}{method}") for backbone in backbones]
        for method in (", Dr. Retina", ", multi-scale test, Dr. Retina", ", RetinaNet")
    )
    return [
        Claim(
            *("table4", "Dr. Retina improves RetinaNet with either backbone", "§4.4"),
            tuple(map(_over, single, rival)),
        ),
        Claim(
            *("table4", "the multi-scale test improves Dr. Retina further with either backbone", "§4.4"),
            tuple(map(_over, several, single)),
        ),
    ]


def _thresholds_and_scales() -> list[Claim]:
    """Claims of Tables 5 and 6."""
    dr, focal = (
        [find_row("table5", f"threshold {t:g}, {loss}") for t in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)]
        for loss in ("DR", "Focal")
    )
    dr_at, focal_at = (
        [find_row("table6", f"scale {side}, {loss}") for side in (400, 500, 600, 700, 800)]
        for loss in ("DR", "Focal")
    )
    return [
        Claim("table5", "DR is ahead of focal at every threshold", _MARGIN, tuple(map(_over, dr, focal))),
        Claim(
            *("table5", "from threshold 0.05 to 0.5 DR loses less than focal", _MARGIN),
            (Comparison((dr[-1], focal[0]), (dr[0], focal[-1])),),
        ),
        Claim(
            *("table5", "DR keeps almost the same from 0.05 to 0.5: less than 1 AP is lost", _MARGIN),
            (Comparison((dr[-1],), (dr[0],), least=-1.0),),
        ),
        Claim(
            *("table6", "DR is ahead of focal at every scale", "§C, effect of image scale"),
            tuple(map(_over, dr_at, focal_at)),
        ),
        Claim("table6", "a larger input is better for DR", "Table 6", tuple(map(_over, dr_at[1:], dr_at))),
    ]


def _other_data_and_controls() -> list[Claim]:
    """The claim of Table 7, and those of our controls."""
    focal, six = find_row("table2", "Focal"), find_row("table2", "L = 6, DR")
    controls = {row.name: row for row in rows_of(CONTROLS)}
    matched = "Table 2 with matched settings"
    return [
        Claim(
            *("table7", "DR outperforms focal on another data set", "§C, comparison on PASCAL"),
            (_over(find_row("table7", "DR"), find_row("table7", "Focal")),),
            on_other_data=True,
        ),
        Claim(
            *(CONTROLS, "with both per image, DR outperforms focal", matched),
            (_over(six, controls["focal:scope=per_image, Focal"]),),
        ),
        Claim(
            *(CONTROLS, "with both pooled, DR outperforms focal", matched),
            (_over(controls["dr:scope=pooled, DR"], focal),),
        ),
        Claim(
            *(CONTROLS, "with the authors' detector settings, DR outperforms focal", matched),
            (_over(*(controls[f"authors' detector settings, {loss}"] for loss in ("DR", "Focal"))),),
        ),
        Claim(
            *(CONTROLS, "the multi-scale test improves DR further", "§4.4"),
            (_over(controls["multi-scale test, DR"], six),),
        ),
    ]


CLAIMS = (*_ablations(), *_detectors(), *_thresholds_and_scales(), *_other_data_and_controls())
"""All claims, in the order of the tables."""
