"""Service classes, keys and headers."""

from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from router.errors import ApiError
from router.identity.caller import Allowance, Caller
from router.slo import resolve
from router.slo_settings import ClassSettings, SloSettings
from router.types import Slo

SETTINGS = SloSettings()
ACME = Caller("acme", Allowance(weight=3.0, value=0.5), "batch")


def refused(headers: Mapping[str, str], settings: SloSettings = SETTINGS) -> ApiError:
    with pytest.raises(ApiError) as caught:
        resolve(headers, settings)
    assert caught.value.status == 400
    return caught.value


def test_who_asks_for_nothing_gets_the_default_class_and_tenant() -> None:
    resolved = resolve({}, SETTINGS)
    assert (resolved.terms.class_name, resolved.terms.tenant, resolved.terms.weight) == ("chat", "default", 1.0)
    assert resolved.terms.slo == Slo(ttft_s=10.0, tpot_s=0.5)
    assert resolved.is_implicit


def test_a_class_is_named_by_the_header_before_the_key_before_the_default() -> None:
    by_key = resolve({}, SETTINGS, ACME)
    assert (by_key.terms.class_name, by_key.terms.tenant, by_key.terms.weight) == ("batch", "acme", 3.0)
    assert by_key.terms.best_effort_ok
    assert not by_key.is_implicit
    by_header = resolve({"x-headrace-class": "interactive"}, SETTINGS, ACME)
    assert (by_header.terms.class_name, by_header.terms.tenant) == ("interactive", "acme")
    assert (by_header.terms.value, by_header.terms.best_effort_ok) == (2.0, False), (
        "the class's value times the tenant's"
    )


def test_a_tenant_has_the_classes_that_it_may_name() -> None:
    only = Caller("acme", Allowance(classes=("batch", "chat")), None)
    assert resolve({}, SETTINGS, only).terms.class_name == "chat", "the default, where it may have that"
    assert resolve({"x-headrace-class": "batch"}, SETTINGS, only).terms.class_name == "batch"
    with pytest.raises(ApiError) as caught:
        resolve({"x-headrace-class": "interactive"}, SETTINGS, only)
    assert (caught.value.status, caught.value.code) == (403, "class_not_allowed")
    assert caught.value.message == "the class 'interactive' is not open to you; allowed: batch, chat"
    batch = Caller("acme", Allowance(classes=("batch",)), None)
    assert resolve({}, SETTINGS, batch).terms.class_name == "batch", "else the first of its own"
    gone = Caller("acme", Allowance(), "gold")
    assert resolve({}, SETTINGS, gone).terms.class_name == "chat", "a key's class that nobody configured any more"


def test_an_unknown_class_is_refused_with_the_classes() -> None:
    error = refused({"x-headrace-class": "gold"})
    assert error.message == "x-headrace-class: 'gold' is not a class here; allowed: interactive, chat, batch"
    assert (error.code, error.param) == ("unknown_class", "x-headrace-class")


def test_numbers_of_one_request_replace_those_of_its_class() -> None:
    resolved = resolve({"x-headrace-ttft-s": "1.5", "x-headrace-tpot-s": " 0.02 "}, SETTINGS)
    assert resolved.terms.slo == Slo(ttft_s=1.5, tpot_s=0.02)
    assert resolved.terms.deadline_s == 60.0
    assert resolve({"x-headrace-deadline-s": "20"}, SETTINGS).terms.deadline_s == 20.0
    assert not resolved.is_implicit


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e3", "1_0", "", "3601", "٣", "0.0000000001", "1 s"])
def test_numbers_are_seconds_above_zero_and_bounded(text: str) -> None:
    error = refused({"x-headrace-ttft-s": text})
    assert error.message.startswith(f"x-headrace-ttft-s: {text!r} is not allowed; allowed: seconds above 0")
    assert error.param == "x-headrace-ttft-s"


def test_a_first_token_after_the_deadline_is_refused() -> None:
    error = refused({"x-headrace-ttft-s": "61"})
    assert error.param == "x-headrace-ttft-s"
    assert "within 61 s" in error.message and "60 s (x-headrace-deadline-s; class 'chat')" in error.message
    assert refused({"x-headrace-deadline-s": "5"}).param == "x-headrace-deadline-s"
    assert resolve({"x-headrace-ttft-s": "61", "x-headrace-deadline-s": "62"}, SETTINGS).terms.slo.ttft_s == 61.0


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"default_class": "gold"}, "default_class: 'gold' is not allowed: no such class; allowed: interactive, chat"),
        ({"classes": {"chat": {"ttft_s": 5, "tpot_s": 1, "deadline_s": 4}}}, "deadline_s: 4 is not allowed"),
        ({"classes": {"chat": {"ttft_s": 0, "tpot_s": 1, "deadline_s": 4}}}, "greater than 0"),
        ({"classes": {"Chat": {"ttft_s": 1, "tpot_s": 1, "deadline_s": 4}}}, "should match pattern"),
        ({"classes": {}}, "at least 1 item"),
        ({"clases": {}}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_is_allowed(tree: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SloSettings.model_validate(tree)
    assert words in str(caught.value)


def test_settings_are_dumped_as_they_are_written() -> None:
    assert SloSettings.model_validate(SETTINGS.model_dump(mode="json")) == SETTINGS


def test_the_highest_value_is_that_of_the_operators_classes() -> None:
    assert SloSettings().top_value == 4.0
    only = ClassSettings(ttft_s=1, tpot_s=1, deadline_s=2, value=0.5)
    assert SloSettings(classes={"only": only}, default_class="only").top_value == 0.5
