"""Content Credentials: signed with a certificate of one's own, verified by c2pa's own reader."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from mos_client.drawing.again import draw_again
from mos_client.drawing.picture import draw_picture
from mos_client.drawing.provenance import read_signature
from mos_common.concept_file import write_concept
from mos_common.drawing import Drawing
from mos_common.errors import RequestError
from mos_common.picture_metadata import MADE_BY_A_MODEL, read_recipe

c2pa = pytest.importorskip("c2pa", reason="the extra [provenance] is not installed")
NOW = datetime.datetime.now(datetime.UTC)


def certificate(name: str, key, issuer=None, issuer_key=None, *, days: int = 100) -> x509.Certificate:
    called = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)]
    )
    signing, authority = issuer_key or key, issuer is None
    built = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(called if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=200))
        .not_valid_after(NOW + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(
            x509.KeyUsage(not authority, False, False, False, False, authority, False, False, False), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
    )
    if not authority:
        built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return built.sign(signing, None if isinstance(signing, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def pem(key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture(params=["P-256", "P-384", "Ed25519"])
def chain(request, tmp_path) -> tuple[Path, Path]:
    return written_chain(tmp_path, request.param)


def written_chain(folder: Path, kind: str = "P-256", *, days: int = 100) -> tuple[Path, Path]:
    """Write alice's certificate with its authority's, and her key."""
    keys = {"P-256": lambda: ec.generate_private_key(ec.SECP256R1()), "P-384": lambda: ec.generate_private_key(ec.SECP384R1()), "Ed25519": ed25519.Ed25519PrivateKey.generate}  # fmt: skip
    root, own = keys["P-256"](), keys[kind]()
    authority = certificate("authority", root)
    alice = certificate("alice", own, authority, root, days=days)
    both = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (alice, authority))
    (folder / "chain.pem").write_bytes(both)
    (folder / "root.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(pem(own))
    return folder / "chain.pem", folder / "key.pem"


@pytest.fixture
def draws(sixteen, make_concept, random_base_folder, tmp_path):
    write_concept(make_concept(sixteen), tmp_path / "cat.safetensors")

    def run(name: str, **changes: object) -> Path:
        settings = {"base": str(random_base_folder()), "how": Drawing(steps=1), "device": "cpu", **changes}
        draw_picture(tmp_path / "cat.safetensors", "a <cat>", tmp_path / name, **settings)
        return tmp_path / name

    return run


def verified(data: bytes, form: str, root: Path | None = None) -> tuple[str, dict]:
    """Return the state by c2pa's reader, which trusts `root` if it is given, and the manifest."""
    settings = {"verify": {"verify_trust": True}}
    if root:
        settings["trust"] = {"user_anchors": root.read_text()}
    context = c2pa.Context(settings=c2pa.Settings.from_dict(settings))
    with c2pa.Reader(form, io.BytesIO(data), context=context) as reader:
        return str(reader.get_validation_state()), reader.get_active_manifest()


@pytest.mark.parametrize(("name", "form"), [("x.png", "image/png"), ("x.jpg", "image/jpeg"), ("x.webp", "image/webp")])
def test_a_signed_picture_is_verified_by_c2pa_s_reader(draws, tmp_path, name, form):
    signature = read_signature(*written_chain(tmp_path))
    picture = draws(name, signature=signature)
    data = picture.read_bytes()
    assert verified(data, form)[0] == "Valid", "whole, by somebody whom the reader does not know"
    state, manifest = verified(data, form, tmp_path / "root.pem")
    assert state == "Trusted"
    assert manifest["signature_info"]["common_name"] == "alice"
    (actions,) = [each for each in manifest["assertions"] if each["label"].startswith("c2pa.actions")]
    (made,) = actions["data"]["actions"]
    assert (made["action"], made["digitalSourceType"]) == ("c2pa.created", MADE_BY_A_MODEL)
    assert read_recipe(picture).prompt == "a <cat>"


@pytest.mark.parametrize("part", ["pixels", "recipe"])
def test_a_changed_byte_is_found(draws, tmp_path, part):
    """The recipe is under the signature like the pixels."""
    data = bytearray(draws("x.webp", signature=read_signature(*written_chain(tmp_path))).read_bytes())
    at = data.index(b"VP8L") + 40 if part == "pixels" else data.index(b"a &lt;cat&gt;")
    data[at] ^= 1
    assert verified(bytes(data), "image/webp")[0] == "Invalid"


def test_every_kind_of_key_signs(draws, chain):
    assert verified(draws("x.png", signature=read_signature(*chain)).read_bytes(), "image/png")[0] == "Valid"


def test_a_signed_picture_is_drawn_again(draws, random_base_folder, tmp_path):
    signature = read_signature(*written_chain(tmp_path))
    picture = draws("x.png", signature=signature)
    again = tmp_path / "y.png"
    said = draw_again(tmp_path / "cat.safetensors", picture, again, base=str(random_base_folder()), signature=signature)
    assert said.same
    assert verified(again.read_bytes(), "image/png")[0] == "Valid"


def test_neither_key_nor_paths_are_in_the_picture(draws, tmp_path):
    chain, key = written_chain(tmp_path)
    data = draws("x.png", signature=read_signature(chain, key)).read_bytes()
    assert b"PRIVATE KEY" not in data
    assert str(tmp_path).encode() not in data
    json.dumps(verified(data, "image/png")[1])


def test_what_cannot_sign_is_refused_with_what_c2pa_asks_for(draws, tmp_path):
    chain, key = written_chain(tmp_path, days=-100)
    with pytest.raises(RequestError, match=r"C2PA asks for a chain of an owner's certificate, valid now"):
        draws("x.png", signature=read_signature(chain, key))
    _, other = written_chain(tmp_path / ".." / tmp_path.name)
    assert not (tmp_path / "x.png").exists()
    with Image.open(draws("y.png")) as unsigned:
        assert unsigned.format == "PNG"
    assert other.exists()


def test_flags_that_do_not_fit_are_refused_before_anything_is_drawn(tmp_path):
    chain, key = written_chain(tmp_path)
    assert read_signature(None, None) is None
    with pytest.raises(RequestError, match="--certificate and --private-key go together"):
        read_signature(chain, None)
    with pytest.raises(RequestError, match=r"--certificate .*nowhere cannot be read"):
        read_signature(tmp_path / "nowhere", key)
    (tmp_path / "key.der").write_bytes(b"\x30\x82")
    with pytest.raises(RequestError, match=r"--private-key .* is not PEM"):
        read_signature(chain, tmp_path / "key.der")
    with pytest.raises(RequestError, match="the private key cannot be read: give it as PEM without a password"):
        read_signature(chain, chain)
