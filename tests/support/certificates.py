"""An authority of a test's own, and the certificates it signs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1\n"


@dataclass(frozen=True)
class Authority:
    """Its certificate is `certificate`; it and all that it signs lie in `folder`."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        folder.mkdir(parents=True)
        (folder / "names").write_text(_NAMES)
        authority = cls(folder)
        _openssl("req", "-x509", *_CURVE, "-days", "2", "-subj", "/CN=authority",
                 "-keyout", folder / "authority.key", "-out", authority.certificate)  # fmt: skip
        return authority

    @property
    def certificate(self) -> Path:
        return self.folder / "authority.pem"

    def sign(self, name: str) -> tuple[Path, Path]:
        """A certificate of 127.0.0.1 and its key. Signing a name again replaces them."""
        key, request, certificate = (self.folder / f"{name}.{end}" for end in ("key", "csr", "pem"))
        _openssl("req", *_CURVE, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        signing = ("-CA", self.certificate, "-CAkey", self.folder / "authority.key", "-extfile", self.folder / "names")
        _openssl("x509", "-req", "-days", "2", "-in", request, *signing, "-out", certificate)
        return certificate, key


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
