"""Throwaway certificates for tests: an authority and what it signs, made by the `openssl` command."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """A certificate and its key, as PEM files."""

    certificate: str
    key: str


class Authority:
    """A certificate authority that lives in a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._pair = Pair(str(folder / f"{name}.crt"), str(folder / f"{name}.key"))
        _openssl("req", "-x509", *_new_key(self._pair.key), "-subj", f"/CN={name}", "-out", self._pair.certificate)

    @property
    def file(self) -> str:
        """Its own certificate: what vouches for all it signs."""
        return self._pair.certificate

    def sign(self, name: str, address: str = "127.0.0.1") -> Pair:
        """A certificate for an IP address; `name` is its subject and its files' name."""
        made = Pair(str(self._folder / f"{name}.crt"), str(self._folder / f"{name}.key"))
        _openssl(
            *("req", "-x509", *_new_key(made.key), "-subj", f"/CN={name}", "-out", made.certificate),
            *("-CA", self._pair.certificate, "-CAkey", self._pair.key, "-addext", f"subjectAltName=IP:{address}"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
        return made


def _new_key(path: str) -> tuple[str, ...]:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    return (*curve, "-nodes", "-keyout", path, "-days", "2")


def _openssl(*arguments: str) -> None:
    subprocess.run(("openssl", *arguments), check=True, capture_output=True)  # noqa: S603, S607 - fixed words
