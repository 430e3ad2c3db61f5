"""`mos-server init`: create a federation."""

from __future__ import annotations

from typing import Annotated

import typer

from mos_common.commands import command_line
from mos_common.options import Base
from mos_common.shell import say
from mos_server.cli.settings import MethodName, Published, Sets, StateFolder, Workers
from mos_server.round.asking import changed_fusion


def init(
    state: StateFolder,
    base: Base = "tiny",
    host: Annotated[
        str, typer.Option("--host", help="Name or address at which participants reach this machine.")
    ] = "127.0.0.1",
    also_name: Annotated[
        list[str] | None,
        typer.Option(
            "--also-name", help="Another name of this machine for the certificate; repeat it.", show_default="none"
        ),
    ] = None,
    fleet_port: Annotated[
        int, typer.Option("--fleet-port", min=1, max=65535, help="Port for the rounds (Flower).")
    ] = 9092,
    mos_port: Annotated[
        int, typer.Option("--mos-port", min=1, max=65535, help="Port for enrolment and downloads.")
    ] = 9093,
    method: MethodName = None,
    sets: Sets = None,
    workers: Workers = None,
    publish: Annotated[
        Published,
        typer.Option(
            "--publish",
            help="`own`: each concept's own spatial changes too, of participants who agree. Kits say so, for good.",
        ),
    ] = Published.FUSED,
    journal: Annotated[
        str,
        typer.Option(
            "--journal",
            help="Keep the journal in PostgreSQL: postgresql+psycopg://USER@HOST/DATABASE, its password in PGPASSWORD "
            "or ~/.pgpass.",
            show_default="a file in STATE",
        ),
    ] = "",
    artefacts: Annotated[
        str,
        typer.Option(
            "--artefacts",
            help="Keep uploads, moments and models in an S3-compatible store: s3://BUCKET/PREFIX, its endpoint in "
            "AWS_ENDPOINT_URL, its credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in ~/.aws.",
            show_default="folders in STATE",
        ),
    ] = "",
) -> None:
    """Create a federation: keys, certificates, an empty journal.

    --method, --set and --workers say how its rounds are fused. `mos-server settings` lists these
    settings and changes them later.
    """
    from mos_common.base_model import fingerprint_of
    from mos_common.base_names import absolute_name
    from mos_server.state.folder import ServerConfig, check_can_create, create_state
    from mos_server.state.journal.postgresql import check_unused, checked_address
    from mos_server.state.store import check_store, checked_store

    fusion = changed_fusion({}, method=method, sets=sets, workers=workers)
    check_can_create(state)
    if journal:
        check_unused(checked_address(journal))
    if artefacts:
        artefacts = checked_store(artefacts)
        check_store(artefacts)
    base = absolute_name(base)  # `serve` may be started from elsewhere
    config = ServerConfig(
        base=base,
        base_fingerprint=fingerprint_of(base),
        host=host,
        also_names=tuple(also_name or ()),
        fleet_port=fleet_port,
        mos_port=mos_port,
        fusion=fusion,
        publishes=publish.value,
        journal=journal,
        artefacts=artefacts,
    )
    create_state(state, config)
    say(f"{state}: a federation on {base} ({config.base_fingerprint[:12]})")
    say(f"participants reach it at {host}, ports {fleet_port} and {mos_port}: open these two to them, and no others")
    invite_someone = command_line("mos-server", "invite", state, "NAME", "--out", "NAME.kit")
    say(f"next: {invite_someone}, and {command_line('mos-server', 'serve', state)}")
