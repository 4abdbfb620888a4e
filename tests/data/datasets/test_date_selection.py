"""Which dates are chosen: the reference choices of the published code, and where ours differ on purpose."""

import json

import numpy as np
import pytest

from data.datasets.date_selection import RULES, choose_dates, neighbours


@pytest.fixture(scope="module")
def cases(golden):
    return json.loads((golden / "sampling.json").read_text())


def coverage_range(case):
    return {"min_cov": case["min_cov"], "max_cov": case["max_cov"]}


def test_fixed_is_the_published_choice_but_for_a_target_among_the_inputs(cases):
    same = 0
    for case in cases:
        coverage, n, published = case["coverage"], case["n_input"], case["fixed"]
        ours = choose_dates(coverage, n, **coverage_range(case))
        clearest = coverage.index(min(coverage))
        assert ours.target == clearest
        assert coverage[published["target"]] == coverage[clearest]
        within = [day for day, share in enumerate(coverage) if case["min_cov"] <= share <= case["max_cov"]]
        candidates = [day for day in within if day != clearest]
        if len(candidates) < n:
            candidates = [day for day in range(30) if day != clearest]
        assert list(ours.inputs) == candidates[:n]  # the published rule with the target taken out
        if published["target"] == clearest and clearest not in published["inputs"]:
            same += 1
            assert (list(ours.inputs), ours.target, ours.matched) == tuple(
                published[k] for k in ("inputs", "target", "match")
            )
    assert same == sum(
        case["fixed"]["target"] not in case["fixed"]["inputs"]
        and case["fixed"]["target"] == int(np.argmin(case["coverage"]))
        for case in cases
    )
    assert same >= 10  # the comparison is not trivial


def test_traps_3_the_published_choice_puts_the_target_among_the_inputs_and_ours_never_does(cases):
    # known issue 3
    published = [case["fixed"]["target"] in case["fixed"]["inputs"] for case in cases]
    assert sum(published) == 21
    for case in cases:
        ours = choose_dates(case["coverage"], case["n_input"], **coverage_range(case))
        assert ours.target not in ours.inputs
    rng = np.random.default_rng(0)
    for _ in range(300):
        coverage = np.round(rng.random(12) * rng.integers(0, 2, 12), 1)
        n = int(rng.integers(1, 12))
        for rule in RULES:
            chosen = choose_dates(coverage, n, rule, 0.0, 0.5, rng, earliest=2, latest=9)
            assert chosen.target not in chosen.inputs
            assert len(set(chosen.inputs)) == n
            assert list(chosen.inputs) == sorted(chosen.inputs)


def test_traps_3_ties_fall_to_the_earliest_date():
    # known issue 3: an unstable sort of these thirty zeros may give any of them
    assert choose_dates(np.zeros(30), 3).target == 0
    assert choose_dates([0.5, 0.2, 0.9, 0.2, 0.2], 2).target == 1


def test_legacy_brings_the_published_choice_back(cases):
    for case in cases:
        ours = choose_dates(case["coverage"], case["n_input"], legacy=True, **coverage_range(case))
        published = case["fixed"]
        assert ours.matched == published["match"]
        clearest = np.flatnonzero(np.asarray(case["coverage"]) == min(case["coverage"]))
        assert ours.target in clearest
        # which of several clearest dates comes first is up to numpy's unstable sort, and so to the machine
        if len(clearest) == 1 or ours.target == published["target"]:
            assert (list(ours.inputs), ours.target) == (published["inputs"], published["target"])


def test_random_is_the_published_choice_for_the_published_draw(cases):
    for case in cases:
        published = case["random"]
        legacy_stream = np.random.RandomState(published["numpy_seed"])
        ours = choose_dates(case["coverage"], case["n_input"], "random", rng=legacy_stream)
        assert (list(ours.inputs), ours.target, ours.matched) == (published["inputs"], published["target"], True)
        assert list(neighbours(published["target"], 30, case["n_input"])) == published["inputs"]


def test_random_draws_every_clear_date_and_only_those():
    coverage = np.full(30, 0.4)
    coverage[[3, 11, 29]] = 0.0009
    coverage[5] = 0.001  # not below the limit
    drawn = {choose_dates(coverage, 3, "random", rng=np.random.default_rng(seed)).target for seed in range(60)}
    assert drawn == {3, 11, 29}


def test_random_takes_the_clearest_where_none_is_clear():
    coverage = [0.9, 0.3, 0.8, 0.3]
    assert choose_dates(coverage, 2, "random", rng=np.random.default_rng(5)).target == 1


@pytest.mark.parametrize(
    ("target", "n", "expected"),
    [
        (10, 3, (9, 11, 12)),
        (10, 2, (9, 11)),
        (0, 3, (1, 2, 3)),
        (1, 3, (2, 3, 4)),
        (29, 3, (26, 27, 28)),
        (28, 3, (26, 27, 29)),
        (4, 29, tuple(day for day in range(30) if day != 4)),
    ],
)
def test_neighbours_surround_the_target_and_stay_inside(target, n, expected):
    windows = [range(start, start + n + 1) for start in range(30 - n) if target in range(start, start + n + 1)]
    middle = windows[len(windows) // 2]
    assert neighbours(target, 30, n) == tuple(day for day in middle if day != target)
    assert neighbours(target, 30, n) == expected


def test_fixedsubset_chooses_within_its_range():
    # known issue 9: the published sampler raises TypeError here
    coverage = [0.0, 0.2, 0.2, 0.2, 0.6, 0.0, 0.2, 0.2, 0.2, 0.2]
    chosen = choose_dates(coverage, 2, "fixedsubset", 0.1, 0.5, earliest=4)
    assert (chosen.inputs, chosen.target, chosen.matched) == ((6, 7), 5, True)
    assert choose_dates(coverage, 2, "fixedsubset", 0.1, 0.5) == choose_dates(coverage, 2, "fixed", 0.1, 0.5)


def test_fixedsubset_falls_back_to_all_dates():
    coverage = [0.0, 0.2, 0.2, 0.2, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9]
    for earliest, latest in ((4, None), (4, 6), (8, None)):  # nothing clear in range, or too few dates
        chosen = choose_dates(coverage, 2, "fixedsubset", 0.1, 0.5, earliest=earliest, latest=latest)
        assert (chosen.inputs, chosen.target) == ((1, 2), 0)


def test_an_unmatched_preference_is_reported():
    coverage = [0.0, 0.9, 0.8, 0.7]
    chosen = choose_dates(coverage, 2, min_cov=0.1, max_cov=0.5)
    assert (chosen.inputs, chosen.target, chosen.matched) == ((1, 2), 0, False)
    assert not choose_dates([0.2, 0.9, 0.8, 0.7], 2).matched  # no clear target


def test_errors_name_what_came():
    with pytest.raises(ValueError, match="unknown rule 'best'.*fixed, fixedsubset, random"):
        choose_dates([0.0, 1.0], 1, "best")
    with pytest.raises(ValueError, match=r"3 input dates .* shape \(3,\)"):
        choose_dates([0.0, 1.0, 0.5], 3)
    with pytest.raises(ValueError, match="pass a generator"):
        choose_dates([0.0, 1.0, 0.5], 1, "random")
