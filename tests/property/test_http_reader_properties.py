"""Invariants 1 to 4 of router/http/reader.py, and what two readers of the same bytes would call a request."""

import pytest
from hypothesis import given, settings

from tests.http_properties import CHECKS


@pytest.mark.parametrize("name", CHECKS)
def test_what_holds_of_any_bytes(name: str) -> None:
    check, strategies = CHECKS[name]
    settings(max_examples=500)(given(**strategies)(check))()
