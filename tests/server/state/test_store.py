"""Artefacts in a store: written whole or not at all, and read only as they were written."""

from __future__ import annotations

import shutil
import threading
from contextlib import closing
from pathlib import Path

import pytest
import s3fs

from mos_common.digests import digest_of_bytes
from mos_common.errors import RequestError, StateError
from mos_common.files import canonical_json
from mos_server.cli.init import init
from mos_server.state.folder import CONFIG, State, open_state
from mos_server.state.journal import Journal
from mos_server.state.published import published_model, published_own
from mos_server.state.records import FAILED, RoundSettings, Upload
from mos_server.state.recovery import tidy
from mos_server.state.store import Store, StoreError, check_store, checked_store
from mos_server.upkeep.forget import forget
from mos_server.upkeep.prune import remove, superfluous
from s3 import Bucket

ALICE, BOB = "aa" * 32, "bb" * 32


@pytest.fixture
def store(bucket: Bucket) -> Store:
    return Store(bucket.new_prefix())


@pytest.fixture
def state(store: Store, tmp_path: Path) -> State:
    init(tmp_path / "state", artefacts=store.url)
    return open_state(tmp_path / "state")


@pytest.fixture
def journal(state: State):
    with closing(Journal(state.database)) as opened:
        yield opened


def write_model(state: State, round_id: str, adapter: bytes = b"adapter", *, own: bool = True) -> str:
    """Write a model of alice and bob where `publish` does; return the digest of its manifest."""
    folder = state.artefacts.model(round_id)
    concepts = [{"token": "<alice/cat>", "digest": ALICE}, {"token": "<bob/dog>", "digest": BOB}]
    if own:
        files = {"adapter.safetensors": {"size": 3, "sha256": digest_of_bytes(b"own")}}
        inside = canonical_json({"token": "<alice/cat>", "files": files})
        write(
            folder.with_name(f"{round_id}.own") / "alice.cat", {"adapter.safetensors": b"own", "manifest.json": inside}
        )
        concepts[0]["own"] = digest_of_bytes(inside)
    listed = {"adapter.safetensors": {"size": len(adapter), "sha256": digest_of_bytes(adapter)}}
    manifest = canonical_json({"round": round_id, "concepts": concepts, "files": listed})
    write(folder, {"adapter.safetensors": adapter, "manifest.json": manifest, "model.sig": b"signed"})
    return digest_of_bytes(manifest)


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def published(state: State, journal: Journal, **changes: bool) -> str:
    """Publish a round of alice and bob."""
    name = journal.rounds.ask(RoundSettings()).id
    for who, digest, concept in (("alice", ALICE, "<cat>"), ("bob", BOB, "<dog>")):
        state.artefacts.put_concept(digest, who.encode())
        journal.uploads.add(
            Upload(0, name, f"key of {who}", who, concept, digest, 3, 1.0, None, None, own=who == "alice")
        )
    manifest = write_model(state, name, adapter=name.encode(), **changes)
    state.artefacts.keep_model(name)
    journal.rounds.publish(name, manifest)
    return name


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("address", ["", "s3://", "s3:///x", "file:///tmp", "s3://Bucket/x", "s3://bucket/a b", "/tmp"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(RequestError, match="expected s3://BUCKET/PREFIX"):
        checked_store(address)


def test_a_new_federation_needs_a_prefix_of_its_own_in_a_bucket_that_is_there(store, bucket):
    check_store(store.url)
    assert store.entries("") == {}
    store.put("concepts/x", b"")
    with pytest.raises(StateError, match="is not empty"):
        check_store(store.url)
    with pytest.raises(StateError, match="bucket does not exist"):
        check_store("s3://another/prefix")


def test_a_store_that_overwrites_is_refused(store, monkeypatch):
    monkeypatch.setattr(Store, "put_new", lambda self, key, data: self.put(key, data) or True)
    with pytest.raises(StateError, match="ignores If-None-Match"):
        check_store(store.url)
    assert store.entries("") == {}


def test_of_many_who_write_one_object_at_once_one_does(store):
    won: list[int] = []

    def write_it(number: int) -> None:
        if Store(store.url).put_new("models/round-001/manifest.json", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=write_it, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("models/round-001/manifest.json") == str(won[0]).encode()
    assert len(won) == 1


def test_uploads_are_in_the_store_alone_until_they_are_withdrawn(state, store):
    state.artefacts.put_concept(ALICE, b"a concept")
    write(state.artefacts.moments, {f"{ALICE}-{'0' * 64}.safetensors": b"moments"})
    with state.artefacts.moments_of([ALICE]):
        pass
    assert state.artefacts.concepts() == [ALICE]
    assert state.artefacts.read_concept(ALICE) == b"a concept"
    assert not (state.path / "concepts").exists()
    assert [key.split("/")[0] for key in store.entries("")] == ["concepts", "moments"]
    state.artefacts.delete_concept(ALICE)
    assert store.entries("") == {}
    assert not list(state.artefacts.moments.iterdir())
    with pytest.raises(StateError, match=f"{store.url}/concepts/{ALICE}"):
        state.artefacts.read_concept(ALICE)


def test_moments_that_another_machine_recorded_are_not_recorded_again(state, store, tmp_path):
    name = f"{ALICE}-{'0' * 64}.safetensors"
    store.put(f"moments/{name}", b"recorded there")
    store.put(f"moments/{BOB}-{'0' * 64}.safetensors", b"of nobody who is fused here")
    with state.artefacts.moments_of([ALICE]) as folder:
        assert contents(folder) == {name: b"recorded there"}
        write(folder, {f"{ALICE}-{'1' * 64}.safetensors": b"new"})
    assert store.get(f"moments/{ALICE}-{'1' * 64}.safetensors") == b"new"
    with pytest.raises(ZeroDivisionError), state.artefacts.moments_of([ALICE]) as folder:
        write(folder, {f"{ALICE}-{'2' * 64}.safetensors": b"before it failed"})
        raise ZeroDivisionError
    assert store.get(f"moments/{ALICE}-{'2' * 64}.safetensors") == b"before it failed"


def test_a_published_model_and_own_changes_come_back_to_a_machine_that_has_lost_them(state, journal):
    name = published(state, journal)
    before = contents(state.path / "models")
    shutil.rmtree(state.path / "models")
    assert contents(published_model(state, journal, name).parent) == before
    assert published_own(state, journal, name, "<alice/cat>").is_dir()


def test_a_copy_that_is_here_needs_no_store(state, journal, monkeypatch):
    name = published(state, journal)
    monkeypatch.setattr(Store, "get", lambda *_: pytest.fail("the store was asked"))
    assert published_model(state, journal, name).is_dir()


def test_what_was_changed_in_the_store_is_not_handed_out(state, journal, store):
    name = published(state, journal)
    shutil.rmtree(state.path / "models")
    (key,) = [key for key in store.entries(f"models/{name}/") if key.endswith("adapter.safetensors")]
    kept = store.get(key)
    for damaged in (b"another", kept[:-1], kept + b"x"):
        store.put(key, damaged)
        with pytest.raises(StateError, match="is damaged"):
            published_model(state, journal, name)
    store.put(key, kept)
    manifest = store.get(f"models/{name}/manifest.json")
    store.put(f"models/{name}/manifest.json", manifest.replace(b"alice", b"malva"))
    with pytest.raises(StateError, match=r"is damaged|not the model"):
        published_model(state, journal, name)


def test_a_second_server_does_not_change_what_the_first_one_published(state, journal, store):
    name = published(state, journal)
    before = {key: store.get(key) for key in store.entries("")}
    write_model(state, name, adapter=b"of the second server")
    with pytest.raises(StateError, match="does a second server work on this federation"):
        state.artefacts.keep_model(name)
    assert {key: store.get(key) for key in before} == before
    state.artefacts.fetch_model(name)
    assert published_model(state, journal, name).is_dir()


@pytest.mark.parametrize("written", range(6))
def test_a_writer_that_dies_leaves_no_model_and_the_next_one_writes_it(state, journal, store, monkeypatch, written):
    """It dies before one of the requests that write: three files, and two manifests."""
    manifest, count = write_model(state, "round-001"), [0]

    def dying(real):
        def request(*args):
            if count[0] == written:
                raise KeyboardInterrupt
            count[0] += 1
            return real(*args)

        return request

    with monkeypatch.context() as patch:
        for name in ("put", "put_new", "put_file"):
            patch.setattr(Store, name, dying(getattr(Store, name)))
        if written < 5:
            with pytest.raises(KeyboardInterrupt):
                state.artefacts.keep_model("round-001")
            assert store.get("models/round-001/manifest.json") is None
        else:
            state.artefacts.keep_model("round-001")
    state.artefacts.keep_model("round-001")
    assert digest_of_bytes(store.get("models/round-001/manifest.json")) == manifest
    before = contents(state.path / "models")
    shutil.rmtree(state.path / "models")
    state.artefacts.fetch_model("round-001")
    assert contents(state.path / "models") == before


def test_own_changes_of_a_withdrawn_concept_are_in_the_store_no_more(state, journal, store):
    name = published(state, journal)
    state.artefacts.remove_own(name, ["<alice/cat>"])
    shutil.rmtree(state.path / "models")
    published_model(state, journal, name)
    assert not [key for key in store.entries("models/") if ".own/" in key]
    with pytest.raises(StateError):
        published_own(state, journal, name, "<alice/cat>")


def test_the_model_of_a_round_that_was_not_published_is_erased_at_the_next_start(state, journal, store):
    name = published(state, journal)
    failed = journal.rounds.ask(RoundSettings()).id
    journal.uploads.add(Upload(0, failed, "k", "alice", "<cat>", ALICE, 3, 1.0, None, None))
    journal.uploads.add(Upload(0, failed, "k", "bob", "<dog>", BOB, 3, 1.0, None, None))
    write_model(state, failed)
    state.artefacts.keep_model(failed)
    journal.rounds.advance(failed, FAILED)
    shutil.rmtree(state.artefacts.model(failed))
    state.artefacts.put_concept("ee" * 32, b"spooled and not journalled")
    tidy(state, journal)
    assert {key.split("/")[1] for key in store.entries("models/")} == {name, f"{name}.own"}
    assert state.artefacts.concepts() == [ALICE, BOB]


def test_pruning_finds_in_the_store_what_it_finds_in_the_folder(state, journal, store, monkeypatch):
    names = [published(state, journal) for _ in range(3)]
    store.put(f"models/{names[2]}/{'0' * 64}/adapter.safetensors", b"of a process that died")
    store.put(f"moments/{'cc' * 32}-0.safetensors", b"of nobody")
    store.put(f"moments/ordinary-{'0' * 64}.safetensors", b"of all")
    store.put(f"concepts/{'cc' * 32}.safetensors", b"of nobody")
    now = [0.0]
    monkeypatch.setattr("mos_server.upkeep.stored.time.time", lambda: now[0])
    young = {item.path.as_posix() for item in superfluous(state, journal) if item.stored}
    assert young == {f"moments/{'cc' * 32}-0.safetensors"}
    now[0] = 1e11
    items = superfluous(state, journal, keep=2)
    assert remove(state, journal, items) == sum(item.size for item in items)
    folders = {"/".join(key.split("/")[:2]) for key in store.entries("")}
    left = {f"models/{name}{suffix}" for name in names[1:] for suffix in ("", ".own")}
    left |= {f"concepts/{digest}.safetensors" for digest in (ALICE, BOB)}
    assert folders == left | {f"moments/ordinary-{'0' * 64}.safetensors"}
    assert len(list(store.entries(f"models/{names[2]}/"))) == 3
    assert sorted(path.name for path in (state.path / "models").iterdir()) == [names[2], f"{names[2]}.own"]
    assert published_model(state, journal, names[1]).is_dir()


@pytest.mark.parametrize("models", [False, True])
def test_a_person_who_is_forgotten_is_in_the_store_no_more(state, journal, store, models):
    name = published(state, journal)
    token, _ = journal.participants.invite("alice", valid_s=60)
    journal.participants.enrol(token, "key of alice", b"pem")
    store.put(f"moments/{ALICE}-0.safetensors", b"moments")
    store.put(f"models/{name}/{'0' * 64}/adapter.safetensors", b"of a process that died")
    done = forget(state, journal, "alice", models=models)
    assert (done.models_left, done.models_removed) == (([], [name]) if models else ([name], []))
    left = {key.split("/")[0] + "/" + key.split("/")[1] for key in store.entries("")}
    assert left == {f"concepts/{BOB}.safetensors"} | (set() if models else {f"models/{name}"})
    if not models:
        assert published_model(state, journal, name).is_dir()


def test_a_store_that_is_away_is_no_missing_model(state, journal, monkeypatch):
    name = published(state, journal)
    shutil.rmtree(state.path / "models")
    s3fs.S3FileSystem.clear_instance_cache()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(StoreError, match=r"cannot be used.*does the store run"):
            published_model(open_state(state.path), journal, name)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_lost_configuration_is_not_taken_for_a_federation_without_a_store(state):
    (state.path / CONFIG).write_text("{")
    with pytest.raises(StateError, match=r"config\.json cannot be used"):
        _ = open_state(state.path).artefacts


def test_without_a_store_nothing_but_the_folder_is_used(tmp_path):
    init(tmp_path / "state")
    state = open_state(tmp_path / "state")
    assert b"artefacts" not in (state.path / CONFIG).read_bytes()
    assert {path.name for path in state.path.iterdir()} >= {"concepts", "moments", "models"}
    state.artefacts.put_concept(ALICE, b"a concept")
    assert state.artefacts.concept_file(ALICE).read_bytes() == b"a concept"
    assert state.artefacts.store is None
