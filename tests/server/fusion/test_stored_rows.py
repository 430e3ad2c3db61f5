"""What a sink of whole rows keeps."""

from __future__ import annotations

import pytest
import torch

from mos_common.errors import FusionError
from mos_server.fusion.stored_rows import StoredRows


def test_what_is_stored_stays_what_was_read():
    """Whatever the model does with its activations afterwards."""
    rows = StoredRows()
    activation = torch.ones(2, 3)
    rows.add("unet.x.input", activation)
    activation.zero_()
    assert torch.equal(rows.stored["unet.x.input"][0], torch.ones(2, 3))


def test_rows_that_are_not_finite_are_named():
    rows = StoredRows()
    rows.add("unet.x.input", torch.tensor([[1.0, float("inf")]]))
    with pytest.raises(FusionError, match=r"activations of unet\.x\.input"):
        rows.finished()


def test_a_fresh_sink_s_rows_are_taken_over():
    rows = StoredRows()
    rows.add("unet.x.input", torch.zeros(1, 3))
    part = rows.fresh()
    part.add("unet.x.input", torch.ones(2, 3))
    rows.merge(part)
    assert torch.equal(rows.of("unet.x.input"), torch.tensor([[0.0] * 3, [1.0] * 3, [1.0] * 3]))
    assert rows.bytes == 3 * 3 * 4
