"""Damaged files of every kind end in one of our own errors, in bounded time and memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.hostile import hostile
from fuzz.limits import read_within_limits
from fuzz.mutations import damaged
from fuzz.readers import MAKERS, Reader

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def reader(request, tmp_path_factory) -> Reader:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


every_reader = pytest.mark.parametrize("reader", list(MAKERS), indirect=True)


@every_reader
def test_good_files_are_taken(reader, tmp_path):
    """Otherwise nothing behind the first check would be tried."""
    assert all(read_within_limits(reader, tmp_path / reader.file, seed).taken for seed in reader.seeds)


@every_reader
def test_hostile_files_end_in_our_own_errors(request, reader, tmp_path):
    """Seventy to two hundred for each kind of reader; all are tried before any is reported."""
    wrong = []
    for what, data in hostile(request.node.callspec.params["reader"], reader.seeds[0]).items():
        try:
            read_within_limits(reader, tmp_path / reader.file, data)
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {str(error)[:150]}")
    assert not wrong, "\n".join(wrong)


@every_reader
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_end_in_our_own_errors(reader, tmp_path, data):
    read_within_limits(reader, tmp_path / reader.file, data.draw(damaged(reader.seeds)))


@pytest.mark.slow
@every_reader
@settings(max_examples=4000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_damaged_files_end_in_our_own_errors(reader, tmp_path, data):
    read_within_limits(reader, tmp_path / reader.file, data.draw(damaged(reader.seeds)))


def test_a_reader_that_costs_too_much_is_noticed(tmp_path):
    """The limits themselves: two seconds of work are more than one may take."""
    slow = Reader("x", (b"",), lambda file: sum(range(10**6)))
    with pytest.raises(AssertionError, match="took"):
        read_within_limits(slow, Path(tmp_path) / "x", b"", seconds=1e-6)
