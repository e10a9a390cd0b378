"""How the paper's claims are judged by the runs."""

import pytest

from drloss.studies.paper.claims import CLAIMS
from drloss.studies.paper.numbers import ROWS
from drloss.studies.paper.tables import outcome


def claim(text):
    return next(c for c in CLAIMS if c.text.startswith(text))


def aps(wanted, by_seed):
    """Values of a claim's rows: those ahead have the given AP, the others 10."""
    values = {row.key: {} for row in ROWS}
    for comparison in wanted.comparisons:
        for row in comparison.rows:
            ap = by_seed if row in comparison.ahead else [10.0] * len(by_seed)
            values[row.key] = {seed: {"AP": v} for seed, v in enumerate(ap)}
    return values


@pytest.mark.parametrize(
    ("by_seed", "said"),
    [
        ([11.0, 12.0, 13.0], "holds in every seed; difference +2.0 ± 1.0 AP"),
        ([9.0, 14.0, 13.0], "holds on average, but only in 2 of 3 seeds; difference +2.0 ± 2.6 AP"),
        ([9.0, 8.0], "does **not** hold (in 0 of 2 seeds); difference -1.5 ± 0.7 AP"),
        ([11.0], "holds in the one seed run; difference +1.0 AP"),
        ([9.0], "does **not** hold in the one seed run; difference -1.0 AP"),
        ([], "not run (NegOnly; Focal)"),
    ],
)
def test_a_claim_is_judged_seed_by_seed(by_seed, said):
    wanted = claim("NegOnly outperforms focal")
    assert outcome(wanted, aps(wanted, by_seed)) == said


@pytest.mark.parametrize(
    ("text", "ahead", "behind", "said"),
    [
        ("a distribution of positives improves NegOnly further", 10.0, 10.0, "does **not** hold"),
        ("the worst case (Eq. 5) fails", 50.0, 4.9, "holds"),
        ("the worst case (Eq. 5) fails", 50.0, 5.1, "does **not** hold"),
        ("DR keeps almost the same from 0.05 to 0.5", 39.1, 40.0, "holds"),
        ("DR keeps almost the same from 0.05 to 0.5", 38.9, 40.0, "does **not** hold"),
        ("the multi-scale test improves Dr. Retina further", 41.0, 40.0, "holds"),
        ("NegOnly outperforms focal", float("nan"), 10.0, "cannot be told"),
        ("NegOnly outperforms focal", 10.0, float("nan"), "cannot be told"),
    ],
)
def test_where_the_bar_of_a_claim_lies(text, ahead, behind, said):
    wanted = claim(text)
    values = {row.key: {} for row in ROWS}
    for comparison in wanted.comparisons:
        values |= {row.key: {0: {"AP": ahead}} for row in comparison.ahead}
        values |= {row.key: {0: {"AP": behind}} for row in comparison.behind}
    assert outcome(wanted, values).startswith(said)


def test_a_claim_of_many_comparisons_takes_all_of_them_and_names_the_closest():
    wanted = claim("every smooth loss outperforms the hinge")
    values = aps(wanted, [12.0, 12.0])
    weakest = wanted.comparisons[2].ahead[0]
    values[weakest.key] = {0: {"AP": 9.0}, 1: {"AP": 9.5}}
    said = outcome(wanted, values)
    assert said.startswith("does **not** hold (in 0 of 2 seeds); smallest difference -0.8")
    assert f"({weakest.name} over Hinge)" in said
