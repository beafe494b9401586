"""Signatures of bundles by ssh-keygen: known signers, other keys, other content, and no tool at all."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from bundle_parts import manifest_of, parts, small_bundle

from pipeline.bundle import signature
from pipeline.bundle.archive import write_archive
from pipeline.bundle.contents import unpacked
from pipeline.bundle.layout import MANIFEST
from pipeline.bundle.verify import verify_bundle
from pipeline.errors import UserError

FILES = parts()
KEYGEN = pytest.mark.skipif(not signature.available(), reason="ssh-keygen is not installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundle") / "x.edgestill.zip")


def key_of(folder: Path, name: str) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return folder / name


def signed_bundle(path: Path, key: Path) -> Path:
    manifest = json.dumps(manifest_of(FILES)).encode()
    write_archive(path, FILES | {MANIFEST: manifest, "manifest.json.sig": signature.sign(manifest, key)})
    return path


@KEYGEN
def test_a_signature_is_checked_against_the_known_signers(tmp_path: Path) -> None:
    alice, mallory = key_of(tmp_path, "alice"), key_of(tmp_path, "mallory")
    signers = tmp_path / "signers"
    signers.write_text("alice " + alice.with_suffix(".pub").read_text())
    path = signed_bundle(tmp_path / "x.zip", alice)
    assert signed_bundle(tmp_path / "y.zip", alice).read_bytes() == path.read_bytes(), "ed25519 signs the same way"
    found = verify_bundle(path)
    assert found.changes == () and not found.trusted
    assert found.signed is not None and found.signed.startswith("signed by ED25519 key SHA256:")
    found = verify_bundle(path, signers)
    assert found.changes == () and found.trusted
    assert found.signed is not None and found.signed.startswith("signed by alice, ED25519 key SHA256:")
    (change,) = verify_bundle(signed_bundle(tmp_path / "z.zip", mallory), signers).changes
    assert change.file == "manifest.json.sig" and f"which is not in {signers}" in change.what
    with unpacked(path) as opened:
        assert opened.manifest.recipe == "digits"


@KEYGEN
def test_a_signature_of_something_else_does_not_count(tmp_path: Path) -> None:
    key = key_of(tmp_path, "alice")
    manifest = json.dumps(manifest_of(FILES)).encode()
    for made in (signature.sign(manifest + b" ", key), b"-----BEGIN SSH SIGNATURE-----\nAAAA\n", b""):
        write_archive(tmp_path / "x.zip", FILES | {MANIFEST: manifest, "manifest.json.sig": made})
        (change,) = verify_bundle(tmp_path / "x.zip").changes
        assert change.what.startswith("the signature does not fit the manifest (")
        assert "edgestill-sign" not in change.what


@KEYGEN
def test_what_cannot_be_signed_or_checked_is_said(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(UserError, match="no such key; make one with 'ssh-keygen -t ed25519 -f "):
        signature.sign(b"x", tmp_path / "none")
    (tmp_path / "text").write_text("no key")
    with pytest.raises(UserError, match="ssh-keygen could not sign with it"):
        signature.sign(b"x", tmp_path / "text")
    (change,) = verify_bundle(bundle, tmp_path / "signers").changes
    assert str(change) == "manifest.json.sig: missing: the bundle is not signed; do not use this file"
    signed = signed_bundle(tmp_path / "x.zip", key_of(tmp_path, "alice"))
    (change,) = verify_bundle(signed, tmp_path / "signers").changes
    assert "no such file; give one with a line 'NAME ssh-ed25519 AAAA...' for each signer" in change.what


def test_without_the_tool_a_signature_is_not_checked_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    path = tmp_path / "x.zip"
    write_archive(path, FILES | {MANIFEST: json.dumps(manifest_of(FILES)).encode(), "manifest.json.sig": b"?"})
    assert verify_bundle(path).signed == "signed, and not checked: ssh-keygen is not installed"
    (tmp_path / "signers").write_text("")
    (change,) = verify_bundle(path, tmp_path / "signers").changes
    assert change.what == ("ssh-keygen is not installed, which is needed to check signatures; install openssh-client")
