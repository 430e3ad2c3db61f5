"""What `deploy/` starts, copies and backs up is what the commands, the code and the files are."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import closing
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from docs.commands import check_command, commands_in
from mos_common import errors
from mos_common.flower_app import POINTER
from mos_common.node_key import create_node_key, key_digest, public_pem
from mos_server.state.folder import ServerConfig, create_state
from mos_server.state.journal import Journal

TOP = Path(__file__).parents[2]
DEPLOY, DOCS = TOP / "deploy", TOP / "docs"
UNITS = ["mos-server.service", "mos-client@.service"]
STARTERS = ["open-linux.sh", "open-macos.command", "open-windows.cmd"]
REQUIREMENTS = ["requirements.txt", "requirements-server.txt"]
CONTAINERFILES = ["Containerfile.server", "Containerfile.client"]


def blocks_under(page: Path, heading: str) -> list[str]:
    """The indented blocks of one section."""
    section = page.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [re.sub("^    ", "", block, flags=re.M) for block in re.findall(r"(?:^    .*\n)+", section, flags=re.M)]


def test_the_table_of_exit_codes_is_that_of_the_code():
    text = (DOCS / "operating.md").read_text(encoding="utf-8").split("\n## Exit codes\n")[1].split("\n## ")[0]
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.M)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MosError)]
    assert listed == {0, 130} | {kind.exit_code for kind in kinds}


def test_the_pointer_app_is_the_one_that_is_sent():
    assert (DEPLOY / "flower-app" / "pyproject.toml").read_text(encoding="utf-8") == POINTER


@pytest.mark.skipif(
    shutil.which("shellcheck") is None and not os.environ.get("CI"),
    reason="needs shellcheck (apt-get install shellcheck)",
)
@pytest.mark.parametrize("name", STARTERS[:2])
def test_a_starter_is_a_clean_script(name):
    found = subprocess.run(
        ["shellcheck", DEPLOY / "open" / name], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.stdout == ""


def test_every_label_of_the_starter_for_windows_is_there():
    text = (DEPLOY / "open" / STARTERS[2]).read_bytes().decode()
    assert text.count("\r\n") == text.count("\n"), "cmd.exe loses its place in a file without carriage returns"
    labels, targets = (set(re.findall(form, text, re.M)) for form in (r"^:(\w+)\r?$", r"goto (\w+)"))
    assert targets == labels


@pytest.mark.parametrize("name", STARTERS)
def test_a_starter_renews_the_environment_for_another_release(name):
    """It is made from the files that say what is installed."""
    text = (DEPLOY / "open" / name).read_text().replace("\\", "/")
    for file in ("constraints.txt", "pyproject.toml", "common/mos_common/release.py"):
        assert file in text
        assert (TOP / file).is_file()


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_a_command_that_exists(name):
    service = unit(name)["Service"]
    words = shlex.split(service["ExecStart"])
    assert words[0].startswith("/opt/mos/bin/")
    (command,) = commands_in(words)
    check_command(command)


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_gives_no_rights_that_are_not_needed_and_leaves_nothing_behind(name):
    service = unit(name)["Service"]
    expected = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "KillMode": "mixed", "CapabilityBoundingSet": ""}
    assert {key: service[key] for key in expected} == expected
    assert service["User"] != "root"
    assert int(service["TimeoutStopSec"]) >= 20
    assert f"/var/lib/{service['StateDirectory']}/" in service["ExecStart"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_a_unit(name, tmp_path):
    # An instance is verified, and with a program that exists on this machine.
    file = tmp_path / name.replace("@", "@cat")
    text = (DEPLOY / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(re.sub(r"/opt/mos/bin/\S+", sys.executable, text))
    file.write_text((tmp_path / name).read_text())
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_a_container_file_names_files_that_exist_and_ends_as_an_ordinary_user(name):
    lines = instructions(name)
    for words in (arguments.split() for instruction, arguments in lines if instruction == "COPY"):
        if not words[0].startswith("--from="):
            assert all((TOP / source).exists() for source in words[:-1]), words
    users = [arguments for instruction, arguments in lines if instruction == "USER"]
    assert users
    assert not users[-1].startswith(("0", "root"))
    (entry,) = json.loads(dict(lines)["ENTRYPOINT"])
    scripts = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert entry in scripts
    command = json.loads(dict(lines)["CMD"])
    if command != ["--help"]:
        check_command([entry, *command])


def test_both_images_are_built_the_same_way():
    server, client = (instructions(name) for name in CONTAINERFILES)
    ports_and_commands = ("EXPOSE", "ENTRYPOINT", "CMD")
    # The server's has the extras of PostgreSQL, stores and traces besides.
    extras = [line for line in server if "requirements-server.txt" in line[1]]
    assert len(extras) == 2
    plain = [(word, text.replace(" deploy/requirements-server.txt", "")) for word, text in server]
    assert [line for line in plain if line[0] not in ports_and_commands and line != extras[1]] == [
        line for line in client if line[0] not in ports_and_commands
    ]


def test_torch_has_a_pinned_version_to_install():
    assert re.search(r"^torch==", (TOP / "constraints.txt").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_package_but_torch_is_pinned_as_tested_and_hashed(name):
    text = (DEPLOY / name).read_text(encoding="utf-8")
    pinned = re.findall(
        r"^([\w.-]+)==(\S+)(?: ; [^\\\n]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M
    )
    assert "".join(re.findall(r"^[\w.-]+==", text, re.M)).count("==") == len(pinned)
    assert not re.search(r"://|--index|--find-links|^-", text, re.M)
    versions = {normal(name): version for name, version, _ in pinned}
    tested = dict(line.split("==") for line in (TOP / "constraints.txt").read_text(encoding="utf-8").split())
    tested = {normal(name): version for name, version in tested.items()}
    assert {name: tested[name] for name in versions if name in tested} == {
        name: version for name, version in versions.items() if name in tested
    }
    assert not [name for name in versions if name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-"))]


@pytest.mark.parametrize("extras", [(), ("postgresql", "s3", "traces")], ids=["both", "server"])
def test_what_is_installed_here_by_the_product_is_all_in_the_list_of_hashes(extras):
    """Walk from the product through the requirements of what is installed, as pip does."""
    files = REQUIREMENTS if extras else REQUIREMENTS[:1]
    text = "".join((DEPLOY / name).read_text(encoding="utf-8") for name in files)
    listed = {normal(name) for name in re.findall(r"^([\w.-]+)==", text, re.M)}
    assert {normal(each.name) for each in runtime_requirements(*extras)} | {"hatchling"} <= listed | {"torch"}
    asked: set[tuple[str, str]] = set()
    ahead = [(each.name, extra) for each in runtime_requirements(*extras) for extra in ("", *each.extras)]
    while ahead:
        name, extra = ahead.pop()
        if (normal(name), extra) in asked or name == "torch":
            continue
        asked.add((normal(name), extra))
        for line in requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                ahead += [(requirement.name, each) for each in ("", *requirement.extras)]
    assert {name for name, _ in asked} <= listed


def runtime_requirements(*extras: str) -> list[Requirement]:
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in [*project["dependencies"], *optional]]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_compose_runs_the_server_on_the_ports_of_the_kits():
    server = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["server"]
    fields = ServerConfig.model_fields
    ports = [fields["fleet_port"].default, fields["mos_port"].default]
    assert server["ports"] == [f"{port}:{port}" for port in ports]
    check_command(["mos-server", *server["command"]])
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    probe = server["healthcheck"]["test"]
    assert probe[:3] == ["CMD", "python", "-c"]
    compile(probe[3], "healthcheck", "exec")
    asked = re.search(r"http://127\.0\.0\.1:(\d+)/readyz", probe[3])
    assert server["command"][-2:] == ["--metrics-port", asked[1]]
    scraped = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    assert scraped[0]["static_configs"] == [{"targets": [f"127.0.0.1:{asked[1]}"]}]
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert dict(instructions("Containerfile.server"))["VOLUME"] == server["volumes"][0].split(":")[1]


def test_a_backup_made_and_restored_by_the_lines_in_the_page_is_the_federation_again(tmp_path):
    """Made while the journal is open, as it is while a server runs."""
    make, restore = blocks_under(DOCS / "operating.md", "Backup and restore")
    journal, key = federation_with_alice(tmp_path)
    (tmp_path / "federation" / "concepts" / "ab.safetensors").write_bytes(b"a concept")
    with closing(journal):
        run_lines(make, tmp_path)
    shutil.rmtree(tmp_path / "federation")
    run_lines(restore, tmp_path)
    with closing(Journal(tmp_path / "federation" / "server.db")) as restored:
        assert restored.participants.is_admitted(key)
        restored.audit.check()
    assert (tmp_path / "federation" / "concepts" / "ab.safetensors").read_bytes() == b"a concept"
    assert (tmp_path / "federation").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "federation" / "pki" / "signing.key").stat().st_mode & 0o777 == 0o600


def federation_with_alice(folder: Path) -> tuple[Journal, str]:
    state = create_state(folder / "federation", ServerConfig(base="tiny", base_fingerprint="ab" * 32))
    journal, pem = Journal(state.database), public_pem(create_node_key(folder / "node_key"))
    token, _ = journal.participants.invite("alice", valid_s=60)
    journal.participants.enrol(token, key_digest(pem), pem)
    return journal, key_digest(pem)


def run_lines(block: str, folder: Path) -> None:
    """Run a block of shell, except for commands of ours."""
    lines = [line for line in block.splitlines() if not line.startswith("mos-")]
    script = "\n".join(["set -e", *lines]).replace("python3 ", f"{shlex.quote(sys.executable)} ")
    subprocess.run(["bash", "-c", script], cwd=folder, check=True, timeout=60)


def unit(name: str) -> configparser.ConfigParser:
    class Unit(configparser.RawConfigParser):
        optionxform = staticmethod(str)

    parsed = Unit(strict=False, comment_prefixes=("#",), delimiters=("=",))
    parsed.read(DEPLOY / name, encoding="utf-8")
    return parsed


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a container file, in order."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / name).read_text(encoding="utf-8"))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line and not line.startswith("#")]
