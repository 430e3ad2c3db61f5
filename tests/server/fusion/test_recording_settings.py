"""Settings of what is recorded."""

from __future__ import annotations

import pytest

from mos_common.errors import RequestError
from mos_server.fusion.recording_settings import RecordingSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"contexts": ()},
        {"ordinary": ()},
        {"steps": 0},
        {"batch": 0},
        {"rows": "none"},
        {"rows": "0,0,0"},
        {"rows": "1,-1,1"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(RequestError):
        RecordingSettings(**wrong)


def test_rows_are_named_or_three_weights():
    assert RecordingSettings(rows="words").row_weights == (1.0, 0.0, 0.0)
    assert RecordingSettings(rows="2,1,0.5").row_weights == (2.0, 1.0, 0.5)
