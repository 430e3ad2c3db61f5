"""A certificate that is for other names than the kit's: the error names both."""

from __future__ import annotations

import pytest

from mos_client.federation.certificate_names import other_names
from mos_client.federation.enrolment import enrol
from mos_common.errors import NetworkError
from mos_server.network.service import MosService
from serving import serving


@pytest.fixture
def elsewhere(operator):
    """The same server at an address that is not in its certificate."""
    service = MosService(operator.state, operator.journal, lambda pem, name: None)
    with serving(service, operator.state.pki, host="127.0.0.2") as port:
        yield operator.kit().model_copy(update={"mos": f"127.0.0.2:{port}"})


def test_the_name_of_the_kit_and_the_names_in_the_certificate_are_said(elsewhere, tmp_path):
    with pytest.raises(
        NetworkError, match=r"not for 127\.0\.0\.2, by which the kit calls it: it is for 127\.0\.0\.1, .*localhost"
    ):
        enrol(elsewhere, tmp_path, patient=False)


def test_a_certificate_for_the_name_of_the_kit_needs_no_words(operator):
    assert other_names(operator.kit()) == ""


def test_a_strangers_certificate_is_not_read_out(new_operator):
    first, second = new_operator(), new_operator()
    assert other_names(first.kit().model_copy(update={"mos": f"127.0.0.1:{second.port}"})) == ""


def test_a_server_that_is_away_has_no_names(operator):
    operator.stop()
    assert other_names(operator.kit()) == ""
