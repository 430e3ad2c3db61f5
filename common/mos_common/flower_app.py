"""The Flower app: a page that points to installed packages, and nothing else.

Flower wants a bundle (FAB) with every run. Ours holds one small pyproject.toml, built in memory and the same byte for
byte wherever the same release is installed: the operator's server sends it, and a client compares its digest with its own
before it answers, which finds releases that do not fit together. No code is ever in it, and a client would not run any.
"""

from __future__ import annotations

import hashlib
import os

# Both are read by flwr when it is imported.
FLOWER_ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}

# A change of what travels in messages (mos_common/messages.py) is a new version here.
POINTER = """\
[project]
name = "federated-mix-of-show"
version = "1.0.0"
description = "Points to the installed mos_server and mos_client; carries no code."
license = { text = "Apache-2.0" }
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
    """Switch off Flower's telemetry and update check, for this process and its children. Call before importing flwr."""
    os.environ.update(FLOWER_ENVIRONMENT)


def build_app() -> tuple[bytes, str]:
    """The bundle and its sha256 as hex."""
    silence_flower()
    from flwr.cli.build import build_fab_from_files

    bundle, _ = build_fab_from_files({"pyproject.toml": POINTER.encode()})
    return bundle, hashlib.sha256(bundle).hexdigest()
