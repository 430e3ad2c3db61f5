"""A page of many people and models stays small."""

from __future__ import annotations

import pytest

from server.page.conftest import Page, page_of
from server.page.crowded import MODELS, PARTICIPANTS, crowded_state

MOST_BYTES = 1_000_000


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Sixty-four participants, each with a concept in each of a hundred models."""
    state, journal = crowded_state(tmp_path_factory.mktemp("crowded"))
    yield from page_of(state, journal)
    journal.close()


@pytest.mark.parametrize("path", ["/", "/people", "/rounds", f"/rounds/round-{MODELS:03d}", "/concepts", "/server"])
def test_a_page_of_64_participants_and_100_models_is_below_a_megabyte(crowded: Page, path: str):
    answer = crowded.get(path)
    assert answer.status_code == 200
    assert len(answer.content) < MOST_BYTES
    if path == "/people":
        assert answer.text.count('action="/people/bar"') == PARTICIPANTS
    if path == "/rounds":
        assert answer.text.count('<a href="/rounds/round-') == MODELS
    if path.startswith("/rounds/"):
        assert answer.text.count("<td><strong>&lt;person-") == PARTICIPANTS
