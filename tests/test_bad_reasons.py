"""Reasons that cannot be made, at the command line: refused before anything starts, in one paragraph."""

from collections.abc import Callable
from typing import Any

import pytest

from tests import test_bad_input
from tests.conftest import once
from tests.test_bad_input import Case, Place, assert_refused

made, place = test_bad_input.made, test_bad_input.place  # fixtures: a good run of a model of two classes
HEADER = "feature,direction,code,text\n"
GROUP = {"group_features": "{root}/given.csv", "outputs": "reasons"}
CODES = {"reason_codes": "{root}/given.csv", "outputs": "reasons"}
REASONS = {"outputs": "reasons"}


def given(content: str | bytes) -> Callable[[Place], Any]:
    return lambda place: place.put("given.csv", content)


CASES = [
    Case("not_asked_for", 2, ("--top-k is about reasons", "Name 'reasons' in --outputs"), {"top_k": "3"}),
    Case("not_among_the_outputs", 2, ("--reason-codes is about reasons",), {**CODES, "outputs": "raw"}, given(HEADER)),
    Case("config_not_asked_for", 2, ("--reasons is about reasons",), spoil=test_bad_input.config("reasons = 'all'")),
    Case("top_k_0", 2, ("--top-k is 0", "at least 1"), {**REASONS, "top_k": "0"}),
    Case("which_unknown", 2, ("--reasons is 'top'", "by-magnitude, positive, negative"), {**REASONS, "reasons": "top"}),
    Case("level_unknown", 2, ("--reasons-level is 'row'", "raw, engineered"), {**REASONS, "reasons_level": "row"}),
    Case("for_unknown", 2, ("--reasons-for is 'class'", "all, predicted"), {**REASONS, "reasons_for": "class"}),
    Case("raw_without_map", 2, ("--reasons-level is raw", "--feature-map"), {**REASONS, "reasons_level": "raw"},
         test_bad_input.engineered),
    Case("predicted_by_no_model", 2, ("no --model", "--reasons-for all"), {**REASONS, "reasons_for": "predicted"},
         test_bad_input.engineered),
    Case("predicted_by_a_regression", 2, ("not a classifier", "--reasons-for all"),
         {**REASONS, "reasons_for": "predicted"}, lambda p: p.use(model="regression.pkl")),
    Case("excluded_unknown", 2, ("--exclude-features names 'agee'", "may be 'age'", "--reasons-level"),
         {**REASONS, "exclude_features": "agee"}),
    Case("excluded_engineered", 2, ("--exclude-features names 'city_Oslo'", "--reasons-level"),
         {**REASONS, "exclude_features": "city_Oslo"}),
    Case("all_excluded", 2, ("leaves no feature",), {**REASONS, "exclude_features": "age,balance,city"}),
    Case("excluded_from_a_group", 2, ("'age', which is in the group 'who'", "Exclude the group"),
         {**GROUP, "exclude_features": "age"}, given("feature,group\nage,who\n")),
    Case("two_groups", 2, ("line 3", "given.csv puts 'age'", "in 'who'", "into one group"), GROUP,
         given("feature,group\nage,who\nage,what\n")),
    Case("group_of_unknown", 2, ("line 2", "given.csv names 'ages'", "may be 'age'"), GROUP,
         given("feature,group\nages,who\n")),
    Case("group_called_like_a_feature", 2, ("group 'city'", "another name"), GROUP, given("feature,group\nage,city\n")),
    Case("group_without_name", 2, ("line 2", "no group for 'age'"), GROUP, given("feature,group\nage,\n")),
    Case("codes_missing", 2, ("--reason-codes", "given.csv cannot be read", "No such file"), CODES),
    Case("codes_not_utf8", 2, ("given.csv cannot be read", "UTF-8"), CODES, given((HEADER + "é").encode("latin-1"))),
    Case("codes_empty", 2, ("given.csv", "'feature', 'direction', 'code', 'text'", "first line"), CODES, given("")),
    Case("codes_without_text", 2, ("given.csv", "the column 'text'"), CODES,
         given("feature,direction,code\nage,,R1\n")),
    Case("codes_with_a_comma", 2, ("line 2", "5 values instead of 4", "quotes"), CODES,
         given(HEADER + "age,,R1,old, too old\n")),
    Case("codes_of_unknown", 2, ("line 3", "'incom'"), CODES, given(HEADER + "age,,R1,Age\nincom,,R2,Income\n")),
    Case("codes_of_other_direction", 2, ("line 2", "direction 'up'", "positive, negative"), CODES,
         given(HEADER + "age,up,R1,Age\n")),
    Case("codes_twice", 2, ("line 3", "'age' a second code for positive"), CODES,
         given(HEADER + "age,,R1,Age\nage,positive,R2,Old\n")),
    Case("codes_without_code", 2, ("line 2", "no code for 'age'"), CODES, given(HEADER + "age,,,Age\n")),
    Case("codes_not_for_all", 2, ("3 of 6 features and directions", "'age (negative)'", "'city (positive)'",
                                  "--missing-code other"), CODES,
         given(HEADER + "age,positive,R1,Age\nbalance,,R2,Balance\n")),
    Case("missing_code_of_nothing", 2, ("--missing-code", "--reason-codes"), {**REASONS, "missing_code": "other"}),
    Case("id_called_rank", 2, ("'rank'", "would collide", "reasons table"), {**REASONS, "id_columns": "rank"},
         lambda p: test_bad_input.both(p, lambda table: test_bad_input.renamed(table, "customer", "rank"))),
]  # fmt: skip


@once
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused(case: Case, place: Place) -> None:
    case.prepare(place)
    before = place.snapshot()
    result = test_bad_input.run(place)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert_refused(place, case, result.exit_code, result.stderr, before)
