"""Signatures by `ssh-keygen -Y`, with the SSH keys that people have; nothing of it is done by this program itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from pipeline.errors import UserError

NAMESPACE = "edgestill"  # a signature made for another purpose does not count
TOOL = "ssh-keygen"
TIMEOUT_S = 120.0  # a passphrase or a touch of a security key may be asked for


def available() -> bool:
    return shutil.which(TOOL) is not None


def sign(data: bytes, key: Path) -> bytes:
    """The signature of `data` by the private key in the file `key` (or its public half, when an agent has it)."""
    if not key.is_file():
        raise UserError(f"{key}: no such key; make one with '{TOOL} -t ed25519 -f {key}'")
    _need_tool("sign")
    with tempfile.TemporaryDirectory(prefix="edgestill-sign-") as name:
        file = Path(name) / "manifest.json"
        file.write_bytes(data)
        done = _run("-Y", "sign", "-q", "-f", str(key.absolute()), "-n", NAMESPACE, str(file))
        signature = file.with_name(file.name + ".sig")
        if done.returncode or not signature.is_file():
            raise UserError(f"{key}: {TOOL} could not sign with it ({_last(done)}); give an SSH key")
        return signature.read_bytes()


def check(data: bytes, signature: bytes, signers: Path | None) -> tuple[str, bool]:
    """Whose signature of `data` it is, in words, and whether `signers` (a list in the form of allowed_signers) vouches
    for that key. Without `signers` only that the signature fits the data is checked. Raises UserError if it does not.
    """
    _need_tool("check")
    if signers is not None and not signers.is_file():
        raise UserError(f"{signers}: no such file; give one with a line 'NAME ssh-ed25519 AAAA...' for each signer")
    with tempfile.TemporaryDirectory(prefix="edgestill-sign-") as name:
        file = Path(name) / "signature"
        file.write_bytes(signature)
        fits = _run("-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(file), data=data)
        if fits.returncode:
            raise UserError(f"the signature does not fit the manifest ({_last(fits)}); do not use this file")
        key = _key(fits)
        if signers is None:
            return f"signed by {key}", False
        allowed = str(signers.absolute())
        who = _run("-Y", "find-principals", "-n", NAMESPACE, "-s", str(file), "-f", allowed, data=data)
        names = who.stdout.decode(errors="replace").split("\n", 1)[0].strip()
        if who.returncode or not names:
            raise UserError(f"signed by {key}, which is not in {signers}; do not use this file, or add the signer")
        sure = _run("-Y", "verify", "-n", NAMESPACE, "-s", str(file), "-f", allowed, "-I", names, data=data)
        if sure.returncode:
            raise UserError(f"signed by {key}, which {signers} does not allow ({_last(sure)}); do not use this file")
        return f"signed by {names}, {key}", True


def _need_tool(verb: str) -> None:
    if not available():
        raise UserError(f"{TOOL} is not installed, which is needed to {verb} signatures; install openssh-client")


def _run(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run([TOOL, *arguments], input=data, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{TOOL} took longer than {TIMEOUT_S:g} s; run it by hand: {TOOL} {arguments[1]}") from None


def _key(done: subprocess.CompletedProcess[bytes]) -> str:
    found = re.search(r"with (\S+) key (\S+)", (done.stdout + done.stderr).decode(errors="replace"))
    return f"{found[1]} key {found[2]}" if found else "an unnamed key"


def _last(done: subprocess.CompletedProcess[bytes]) -> str:
    """What the tool said, without the names of our temporary files."""
    lines = (done.stderr + done.stdout).decode(errors="replace").strip().splitlines()
    return re.sub(r"\S*edgestill-sign-\S*", "it", lines[-1].strip()) if lines else f"exit {done.returncode}"
