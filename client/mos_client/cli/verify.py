"""The command `verify`: who signed a model, who is in it, and what does not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_common.errors import TrustError
from mos_common.options import SignedBy
from mos_common.shell import say


def register(app: typer.Typer) -> None:
    """Add the command to `mos-client`."""
    app.command(epilog="Example: mos-client verify models/round-003 --kit alice.kit")(verify)


def verify(
    model: Annotated[Path, typer.Argument(help="A fused model's folder.")],
    kit: SignedBy = None,
    print_key: Annotated[
        bool,
        typer.Option(
            "--print-key", help="Print the public key that signed it, as PEM, once everything holds, and nothing else."
        ),
    ] = False,
) -> None:
    """Say who signed a model and who is in it, and what holds and what does not, line by line.

    Ends with exit code 8 if something does not hold. A model of a federation whose key is on P-256
    bears an OpenSSF model signature, which the tool model_signing verifies with the printed key.
    """
    from mos_client.inspection.fused import verify_folder
    from mos_common.model_folder import signing_key_of

    verdict = verify_folder(model, kit)
    if print_key and not verdict.wrong:
        say(signing_key_of(model, kit).strip())
        return
    for line in verdict.lines:
        say(line, error=print_key)
    if verdict.wrong:
        raise TrustError(f"{model}: {verdict.wrong} of what was looked at does not hold: do not use it")
