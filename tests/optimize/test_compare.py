"""Planted comparisons: scores whose answer is known before they are compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from optimize.compare import Comparison, Judged, Latency, Units, compare, draw_comparison, operate
from optimize.compare.limits import common_rate, curve_of, limit_at, rate_at
from optimize.compare.units import ALWAYS, NEVER
from optimize.evaluate import upper_bound

GOODS = np.linspace(0.0, 0.6, 1000)
"""Ten of a thousand good parts score over 0.594: a limit there is one percent of overkill."""


def judged(name: str, missed: Sequence[int], *, n: int = 412, alarms: NDArray[np.float64] = GOODS) -> Judged:
    """A model that sees every part but these, whose scores are low."""
    scores = np.full(n, 0.9)
    scores[list(missed)] = 0.1
    return Judged(name=name, task="detect", scores=scores, alarms=alarms, own_limit=0.5)


def units(*models: Judged, groups: Sequence[str] | None = None, exposures: int = 1000) -> Units:
    n = len(models[0].scores)
    return Units(
        unit="part",
        counted="critical",
        groups=tuple(groups or (f"part{i}" for i in range(n))),
        exposures=exposures,
        images=n + exposures,
        judged=models,
    )


def ms(median: float) -> Latency:
    return Latency(median=median, low=median - 0.1, high=median + 0.1, count=50)


def at_one_percent(asked: Units, **more: object) -> Comparison:
    return compare(asked, operate(asked, asked, 0.01, "test"), **more)  # type: ignore[arg-type]


def test_the_planted_pair_with_the_higher_map_is_not_deployed() -> None:
    """YOLO has the higher mAP and misses three times as many: the sentence names SSD, and says what mAP says."""
    asked = units(judged("YOLO", range(9)), judged("SSD", range(3, 6)))
    found = at_one_percent(asked, latency={"YOLO": ms(12.4), "SSD": ms(16.4)}, map50={"YOLO": 0.741, "SSD": 0.702})

    assert found.choice.name == "SSD"
    assert found.choice.reason == (
        "deploy SSD: 3 of 412 critical parts missed against 9, p = 0.031; 4.0 ms slower; "
        "by mAP50 it would have been YOLO (0.741 against 0.702)"
    )
    assert [m.missed for m in found.models] == [9, 3]
    assert found.models[1].escape_upper_95 == pytest.approx(upper_bound(3, 412))


def test_a_planted_difference_that_may_be_chance_is_not_claimed() -> None:
    """Three against five, each missing others: the faster one, and from which difference on it would have shown."""
    asked = units(judged("SSD", range(3)), judged("YOLO", range(10, 15)))
    found = at_one_percent(asked, latency={"YOLO": ms(12.1), "SSD": ms(16.4)})

    assert found.choice.reason == (
        "no difference that these 412 critical parts can show (5 against 3 missed, p = 0.73); take the faster: YOLO, "
        "12.1 against 16.4 ms; SSD missed fewer, which may be chance"
    )
    assert found.smallest_difference == 9
    assert any("can show a difference of 9 missed or more" in note for note in found.notes)


def test_the_same_misses_on_few_groups_show_nothing() -> None:
    """Six more missed pictures are one more missed part where they show the same one."""
    pair = judged("a", ()), judged("b", range(6))
    alone = at_one_percent(units(*pair))
    grouped = at_one_percent(units(*pair, groups=[f"g{i // 6}" for i in range(412)]))

    assert alone.choice.is_shown
    assert not grouped.choice.is_shown
    assert grouped.choice.p_value == 1.0
    assert grouped.models[1].escape_upper_95 > alone.models[1].escape_upper_95
    assert grouped.models[0].escape_upper_95 == pytest.approx(upper_bound(0, 69))
    assert any("by group: 69 groups" in note for note in grouped.notes)


def test_overkill_is_made_equal_before_anything_is_counted() -> None:
    """A model whose own limit stops every third good part must not win by that."""
    rng = np.random.default_rng(1)
    hard = rng.uniform(0.2, 0.8, 412)
    careful = dataclasses.replace(judged("careful", ()), scores=hard, own_limit=0.7)
    # The same model with other numbers for its scores: the order of the parts is all that counts.
    trigger_happy = dataclasses.replace(careful, name="happy", scores=hard**0.5, alarms=GOODS**0.5, own_limit=0.3)

    found = at_one_percent(units(careful, trigger_happy))

    assert found.models[0].missed == found.models[1].missed > 0
    assert [m.overkill_rate for m in found.models] == [0.01, 0.01]
    assert found.choice.p_value == 1.0


def test_the_common_overkill_is_the_largest_of_their_own_and_at_least_one_part() -> None:
    """Every model can then be run so, and a limit rests on something that was seen."""
    first, second = judged("a", ()), dataclasses.replace(judged("b", ()), own_limit=0.3)

    assert common_rate([first, second], 1000) == rate_at(GOODS, 1000, 0.3)
    assert common_rate([dataclasses.replace(first, own_limit=0.99)], 1000) == 0.001


def test_limits_come_from_the_reference_and_misses_from_the_compared_set() -> None:
    """Choosing both on the same parts flatters; here val has higher scores on good parts than test."""
    val = units(judged("a", (), alarms=GOODS + 0.35), judged("b", (), alarms=GOODS))
    test = units(judged("a", range(5)), judged("b", range(5)))
    test = dataclasses.replace(
        test, judged=tuple(dataclasses.replace(j, scores=j.scores.clip(0.1, 0.92)) for j in test.judged)
    )

    found = compare(test, operate(test, val, 0.01, "val"))

    assert found.limits_from == "val"
    assert [m.missed for m in found.models] == [412, 5]
    assert [m.overkill_rate for m in found.models] == [0.0, 0.01]


def test_what_the_recommended_one_misses_as_it_was_built_is_said_with_the_limit_to_set() -> None:
    """A recommendation at a limit that the device does not run would be worth nothing."""
    scores = np.full(412, 0.9)
    scores[:27] = 0.65
    built = dataclasses.replace(judged("a", ()), scores=scores, own_limit=0.7)

    found = at_one_percent(units(built, judged("b", range(300))))

    assert found.choice.name == "a"
    assert (
        "a stands at 0.594 here; with its own review_above, 0.7, it misses 27: set policy.review_above to 0.593 on the "
        "device, or build it with that" in found.notes
    )


def test_a_bundle_that_misses_fewer_as_it_was_built_is_left_so_and_its_price_is_said() -> None:
    """Nobody is to be sent from 0 missed to 27."""
    scores = np.full(412, 0.9)
    scores[:27] = 0.55
    built = dataclasses.replace(judged("a", ()), scores=scores, own_limit=0.3)

    found = at_one_percent(units(built, judged("b", range(300))))

    said = "a stands at 0.594 here; with its own review_above, 0.3, it misses 0 and rejects 50.00% of good parts"
    assert said in found.notes
    assert not any("set policy.review_above" in note for note in found.notes)


def test_an_overkill_that_no_line_would_run_at_is_said() -> None:
    """At no limit at all every model finds everything."""
    asked = units(judged("a", ()), judged("b", ()))

    found = compare(asked, operate(asked, asked, 0.9, "test"))

    assert any("most good parts are rejected" in note for note in found.notes)


def test_limits_that_did_not_carry_over_are_said() -> None:
    """Five percent of overkill against none buys misses: that is no merit of the model."""
    val = units(judged("a", ()), judged("b", ()))
    drifted = units(judged("a", (), alarms=GOODS * 1.05), judged("b", range(9), alarms=GOODS * 0.9))

    found, same = (compare(asked, operate(asked, val, 0.01, "val")) for asked in (drifted, val))

    assert any(n.startswith("overkill is not the same here (a 5.80%, b 0.00%)") for n in found.notes)
    assert not any("not the same here" in n for n in same.notes)


def test_without_good_parts_each_stands_at_its_own_limit() -> None:
    """Nothing to make equal; the overkill is then unknown and not zero."""
    none = np.empty(0)
    asked = units(
        judged("a", range(4), alarms=none),
        dataclasses.replace(judged("b", (), alarms=none), own_limit=0.95),
        exposures=0,
    )

    found = compare(asked, operate(asked, asked, None, "test"))

    assert (found.rate, found.limits_from) == (None, "own")
    assert found.choice.reason.endswith(
        "without good parts equal overkill can't be had, so each stands at its own limit"
    )
    assert [(m.limit, m.missed, m.overkill_rate) for m in found.models] == [(0.5, 4, None), (0.95, 412, None)]


@pytest.mark.parametrize(
    ("goods", "rate", "source", "said"),
    [
        (1000, 0.01, "val", "both reject the same share of good parts: at most 10 of 1000 good parts of val."),
        (12, 0.01, "val", "both reject the same share of good parts: none of 12 good parts of val."),
        (1, 1.0, "the same images", "both reject the same share of good parts: at most 1 of 1 good part."),
        (0, None, "test", "No part is good here, so each model has the limit of its own policy."),
    ],
)
def test_how_limits_were_set_is_said_in_counts(goods: int, rate: float | None, source: str, said: str) -> None:
    """A share of a few parts is not what anybody allowed: 16.67 % was two of twelve."""
    asked = units(judged("a", (), alarms=GOODS[:goods]), judged("b", (), alarms=GOODS[:goods]), exposures=goods)

    found = compare(asked, operate(asked, asked, rate, source))

    assert found.limits_text.endswith(said)
    allowed = None if rate is None else int(rate * goods)
    assert (found.to_json()["limits_allow"], found.to_json()["limits_of"]) == (allowed, goods)


def test_what_could_not_be_judged_is_stopped_and_said() -> None:
    """An error is no escape, as the line stops such a part, but it is no merit either."""
    broken = dataclasses.replace(judged("broken", ()), unjudged=20)
    broken.scores[:20] = ALWAYS

    found = at_one_percent(units(broken, judged("b", range(9))))

    assert found.models[0].missed == 0
    assert found.models[0].unjudged == 20
    assert "images that could not be judged (20 by broken) count as stopped" in found.choice.reason


def test_a_good_part_that_could_not_be_judged_is_overkill() -> None:
    """Else a model would get a lower limit for failing on good parts."""
    alarms = GOODS.copy()
    alarms[:10] = ALWAYS

    assert limit_at(alarms, 1000, 0.01) == np.nextafter(GOODS[-1], 1)
    assert limit_at(GOODS, 1000, 0.01) < GOODS[-1]


def test_what_was_never_found_is_missed_at_every_limit() -> None:
    """No limit makes a detector see a box that it has no finding for."""
    blind = dataclasses.replace(judged("blind", ()), scores=np.full(412, NEVER))

    found = compare(units(blind, judged("b", ())), operate(units(blind, judged("b", ())), None, None, "own"))

    assert found.models[0].missed == 412
    assert curve_of(units(blind), blind).missed.min() == 1.0


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0, ALWAYS]), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0]),
)
def test_a_limit_keeps_the_rate_and_a_lower_one_does_not(scores: list[float], rate: float) -> None:
    """The lowest limit that holds: anything lower would miss less, and stop more good parts than was agreed."""
    alarms = np.array(scores)
    limit = limit_at(alarms, len(alarms), rate)
    always = float(np.isinf(alarms).mean())

    assert 0 <= limit < 2
    assert rate_at(alarms, len(alarms), limit) <= max(rate, always) + 1e-12
    if limit > 0 and always <= rate:
        assert rate_at(alarms, len(alarms), np.nextafter(limit, -1)) > rate


def test_the_curve_passes_through_every_operating_point() -> None:
    """What is drawn is what was counted."""
    rng = np.random.default_rng(5)
    model = dataclasses.replace(judged("a", ()), scores=rng.beta(4, 2, 412), alarms=rng.beta(2, 6, 1000))
    curve = curve_of(units(model), model)

    assert (curve.rates[0], curve.missed[0]) == (0.0, 1.0)
    assert (curve.rates[-1], curve.missed[-1]) == (1.0, 0.0)
    assert (np.diff(curve.rates) >= 0).all()
    for rate in (0.01, 0.05, 0.2):
        limit = limit_at(model.alarms, 1000, rate)
        at = np.flatnonzero(curve.rates <= rate)[-1]
        assert curve.missed[at] == pytest.approx((model.scores < limit).mean())


def test_three_models_are_all_looked_at_and_the_p_value_pays_for_it() -> None:
    """Six more missed is p = 0.031 for a pair; with three pairs to look at it is no longer shown."""
    a, b, c = judged("a", ()), judged("b", range(6)), judged("c", range(100, 106))

    pair, three = at_one_percent(units(a, b)), at_one_percent(units(a, b, c))

    assert pair.choice.p_value == pytest.approx(0.03125)
    assert three.choice.p_value == pytest.approx(3 * 0.03125)
    assert (pair.choice.is_shown, three.choice.is_shown) == (True, False)
    assert any("Holm" in note for note in three.notes)


def test_the_document_has_the_keys_that_others_read() -> None:
    """And nothing in it that JSON can't say."""
    found = at_one_percent(units(judged("a", ()), judged("b", range(6))), latency={"a": ms(3.0), "b": None})
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))

    assert {"recommended", "reason", "models", "p_value", "unit", "severity", "notes"} <= set(document)
    keys = {"name", "task", "n", "missed", "escape_rate", "escape_upper_95", "overkill_rate", "map50", "latency_ms"}
    assert keys | {"limit"} <= set(document["models"][0])
    assert (document["unit"], document["severity"], document["recommended"]) == ("part", "critical", "a")
    assert [m["latency_ms"] for m in document["models"]] == [3.0, None]


@pytest.mark.parametrize("exposures", [0, 1000])
def test_the_picture_shows_every_model(exposures: int) -> None:
    """A curve, a ring and a row in the model's colour, with and without good parts."""
    alarms = GOODS if exposures else np.empty(0)
    asked = units(judged("a", range(9), alarms=alarms), judged("b", range(3), alarms=alarms), exposures=exposures)
    found = compare(asked, operate(asked, asked, None, "test"))

    picture = cv2.imdecode(np.frombuffer(draw_comparison(found), np.uint8), cv2.IMREAD_COLOR)

    assert picture is not None
    assert picture.shape == (600, 1440, 3)
    for colour in ((190, 120, 40), (60, 60, 210)):
        is_there = cv2.inRange(picture, np.array(colour), np.array(colour)) > 0
        assert is_there[:, :640].sum() > 20
        assert is_there[:, 640:].sum() > 80
