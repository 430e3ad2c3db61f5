"""The Flower app: a bundle that points to the installed packages and carries no code.

Flower requires a bundle (FAB) with every run. Ours holds one small pyproject.toml, built in memory
and identical byte for byte wherever the same release is installed. The operator's server sends it,
and a client compares its digest with its own before it answers, so that incompatible releases are
detected. It never contains code, and a client would not run any.
"""

from __future__ import annotations

import hashlib
import os

from mos_common.release import PROTOCOL

# Both are read by flwr when it is imported.
FLOWER_ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}

# Its version is the protocol's: releases that do not fit refuse each other before any message is
# read, should their first call of mos.v1 not have told them.
POINTER = f"""\
[project]
name = "federated-mix-of-show"
version = "{PROTOCOL}.0.0"
description = "Points to the installed mos_server and mos_client; carries no code."
license = {{ text = "Apache-2.0" }}
dependencies = ["flwr==1.42.0"]

[tool.flwr.app]
publisher = "mos"
fab-include = ["pyproject.toml"]

[tool.flwr.app.components]
serverapp = "mos_server.round.app:app"
clientapp = "mos_client.federation.app:app"

[tool.flwr.app.config]
state = ""
round = ""
"""


def silence_flower() -> None:
    """Switch off Flower's telemetry and update check, also for child processes.

    Call it before importing flwr.
    """
    os.environ.update(FLOWER_ENVIRONMENT)


def build_app() -> tuple[bytes, str]:
    """Return the bundle and its sha256 as hex."""
    silence_flower()
    from flwr.cli.build import build_fab_from_files

    bundle, _ = build_fab_from_files({"pyproject.toml": POINTER.encode()})
    return bundle, hashlib.sha256(bundle).hexdigest()
