"""Certificates for boards and hosts: an authority of one's own, and what it has signed."""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tvmcompress.errors import MissingDependencyError, UsageError


def make(folder: Path, days: int = 825) -> None:
    """Writes authority, board and host, each `.pem` and `.key`, into a new folder. Raises UsageError if it exists."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ModuleNotFoundError as error:
        raise MissingDependencyError("certificates want cryptography: pip install 'tvmcompress[boards]'") from error
    if folder.exists():
        raise UsageError(f"{folder} exists; name a new folder")
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {folder.absolute().parent}")
    begin = datetime.now(UTC) - timedelta(minutes=5)
    named = {who: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"tvmcompress {who}")]) for who in WHO}
    keys: dict[str, Any] = {who: ec.generate_private_key(ec.SECP256R1()) for who in WHO}
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.absolute().parent))
    try:
        for who in WHO:
            authority = who == "authority"
            usage = dict.fromkeys(USAGE, False)
            usage |= {"key_cert_sign": True, "crl_sign": True} if authority else {"digital_signature": True}
            certificate = (
                x509.CertificateBuilder()
                .subject_name(named[who])
                .issuer_name(named["authority"])
                .public_key(keys[who].public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(begin)
                .not_valid_after(begin + timedelta(days=days))
                .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
                .add_extension(x509.KeyUsage(**usage), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[who].public_key()), critical=False)
                .add_extension(
                    x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["authority"].public_key()), critical=False
                )
                .sign(keys["authority"], hashes.SHA256())
            )
            (temporary / f"{who}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            secret = keys[who].private_bytes(serialization.Encoding.PEM, *form)
            with open(os.open(temporary / f"{who}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secret)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


WHO = ("authority", "board", "host")
USAGE = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip
