"""Who may open the operator's page: two tokens are printed, or a proxy sends two secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mos_common.errors import RequestError
from mos_common.pages.access import Access, Role, new_token
from mos_common.pages.serving import LOOPBACK, address_of, hosts_of
from mos_server.monitoring.health import Health
from mos_server.network.loopback import listen_on, serving
from mos_server.page.application import operators_page
from mos_server.page.children import Children
from mos_server.page.federation import Federation
from mos_server.state.folder import State
from mos_server.state.journal import Journal

HEADER = "x-mos-secret"
_SHORTEST, _LONGEST = 16, 512


@dataclass(frozen=True)
class PageOptions:
    """How the page is served. `secrets` are those of a proxy; without them, tokens are printed."""

    port: int = 0
    secrets: dict[str, Role] = field(default_factory=dict, repr=False)
    hosts: tuple[str, ...] = ()

    @staticmethod
    def read(port: int, act: Path | None, look: Path | None, hosts: Sequence[str]) -> PageOptions:
        """Return the options, with the secrets that are in files.

        Raises:
            RequestError: a file cannot be used, or a proxy is half described.

        """
        files = {Role.ACT: act, Role.LOOK: look}
        secrets = {_secret(file): role for role, file in files.items() if file is not None}
        if len(secrets) < sum(file is not None for file in files.values()):
            raise RequestError("--page-secret and --page-look-secret hold the same secret: give two different ones")
        if bool(secrets) != bool(hosts):
            raise RequestError(
                "behind a proxy the page needs --page-secret or --page-look-secret, and --page-host: the name under "
                "which browsers ask the proxy for it"
            )
        return PageOptions(port, secrets, tuple(hosts))


@contextmanager
def opened_page(
    options: PageOptions, state: State, journal: Journal, health: Health, announce: Callable[[str], None]
) -> Iterator[None]:
    """Serve the page within the block, and announce how it is opened.

    Raises:
        NetworkError: the port is in use.

    """
    listener = listen_on(options.port, "--page-port")
    tokens = options.secrets or {new_token(): Role.ACT, new_token(): Role.LOOK}
    hosts = hosts_of(listener) | frozenset(options.hosts)
    access = Access(hosts, tokens, HEADER if options.secrets else None)
    children = Children(state)
    with serving(operators_page(Federation(state, journal, health, children), access), listener):
        try:
            if options.secrets:
                port = listener.getsockname()[1]
                announce(f"page: {LOOPBACK}:{port}, for the proxy of {', '.join(options.hosts)}")
            else:
                for token, role in tokens.items():
                    announce(f"page{', to look only' if role is Role.LOOK else ''}: {address_of(listener, token)}")
            yield
        finally:
            children.close()


def _secret(file: Path) -> str:
    try:
        secret, mode = file.read_text(encoding="ascii").strip(), file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} cannot be read as a secret ({error}): give a file of one line of ASCII") from error
    if mode & 0o077:
        raise RequestError(f"{file} can be read by others: chmod 600 it")
    if not (_SHORTEST <= len(secret) <= _LONGEST and secret.isprintable() and " " not in secret):
        raise RequestError(
            f"{file} holds {len(secret)} characters: expected {_SHORTEST} to {_LONGEST} on one line, without spaces; "
            f"make it with: openssl rand -base64 32 > {file}"
        )
    return secret
