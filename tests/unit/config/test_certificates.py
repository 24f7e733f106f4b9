"""What `echod check` says of certificates, keys and authorities."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from echod.config import certificates, checks
from echod.errors import Refusal
from echod.x509 import Certificate
from tests.support.certificates import authority_file, pem_file
from tests.support.loading import load
from tests.support.rig import settings

NOW = datetime.now(UTC)


def refusal(**values: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        settings(tls__port=7443, **{f"tls__{name}": value for name, value in values.items()})
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.pem"


def test_a_file_that_is_missing_or_unreadable(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    assert refusal(certificate=missing).lines == (
        f"{missing}: tls.certificate: can't be read: No such file or directory",
    )
    assert refusal(certificate=missing).exit_code == os.EX_NOINPUT
    assert (
        refusal(certificate=pem_file(), key=str(tmp_path)).lines[0].endswith("tls.key: can't be read: Is a directory")
    )
    ca = refusal(certificate=pem_file(), client_ca=missing, verify="required").lines[0]
    assert ca == f"{missing}: tls.client_ca: can't be read: No such file or directory"


def test_a_file_without_what_it_should_have(file: Path) -> None:
    file.write_text("nonsense")
    assert refusal(certificate=str(file)).lines == (f"{file}: tls.certificate: has no certificate in PEM format",)
    assert (
        refusal(certificate=pem_file("a", "one", False))
        .lines[0]
        .endswith("tls.key: has no private key in PEM format: name its file in tls.key")
    )
    assert refusal(certificate=pem_file(), key=str(file)).lines[0].endswith("has no private key in PEM format")
    text = refusal(certificate=pem_file(), client_ca=str(file), verify="optional").lines[0]
    assert "tls.client_ca: has no usable certificate: " in text


@pytest.mark.parametrize("setting", ["certificate", "client_ca"])
def test_a_file_that_is_cut_within_a_certificate(file: Path, setting: str) -> None:
    """OpenSSL takes what is whole, if the next one is cut in its first line. Between two, nobody can tell."""
    whole, other = {"certificate": pem_file(), "client_ca": authority_file()}, Path(authority_file("two")).read_bytes()
    names = {**whole, "verify": "required", setting: str(file)}
    for length in [*range(1, 40), len(other) // 2, len(other) - 2]:
        file.write_bytes(Path(whole[setting]).read_bytes() + other[:length])
        (line,) = refusal(**names).lines
        assert line.startswith(f"{file}: tls.{setting}: "), length


def test_authorities_that_were_not_there_before(file: Path) -> None:
    """They let in more clients than before; fewer do not, nor any if no certificate was asked for."""

    def loaded(verify: str, *authorities: str) -> certificates.Loaded:
        file.write_bytes(b"".join(Path(authority_file(name)).read_bytes() for name in authorities))
        more = {"tls__client_ca": str(file)} if authorities else {}
        return certificates.load(settings(tls__port=7443, tls__certificate=pem_file(), tls__verify=verify, **more).tls)

    one, both, none = loaded("required", "one"), loaded("optional", "one", "two"), loaded("none")
    (subject,) = both.authorities_since(one)
    assert subject.endswith("O=authority two")
    assert one.authorities_since(both) == one.authorities_since(none) == one.authorities_since(None) == []


def test_the_key_of_another_certificate() -> None:
    lines = refusal(certificate=pem_file(), key=pem_file("other")).lines
    assert lines == (f"{pem_file('other')}: tls.key: is not the key of the first certificate in {pem_file()}",)


def private_key(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


@pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()])
def test_a_key_of_another_type(file: Path, key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> None:
    file.write_text(private_key(key))
    (line,) = refusal(certificate=pem_file(), key=str(file)).lines
    assert line == f"{file}: tls.key: is not the key of the first certificate in {pem_file()}"


def test_a_damaged_key_is_told_from_a_damaged_certificate(file: Path) -> None:
    whole = private_key(ec.generate_private_key(ec.SECP256R1()))
    for damaged in (whole[:100], whole.replace("MI", "AA", 1)):
        file.write_text(damaged)
        (line,) = refusal(certificate=pem_file(), key=str(file)).lines
        assert line == f"{file}: tls.key: has a private key that can't be read: it is damaged or half-written"


def test_a_file_that_is_a_pipe_or_a_device(file: Path) -> None:
    """A pipe without a writer would hold up a start for ever, and a reload for as long as one may take; /dev/zero takes all memory."""
    os.mkfifo(file)
    good = pem_file()
    for values in ({"certificate": str(file)}, {"certificate": good, "key": str(file)}, {"certificate": "/dev/zero"}):
        failed = refusal(**values)
        assert failed.exit_code == os.EX_NOINPUT
        assert failed.lines[0].endswith(": can't be read: it is not a regular file")


def test_a_broken_certificate(file: Path) -> None:
    file.write_text(Path(pem_file()).read_text().replace("MII", "AAA", 1))
    assert "tls.certificate: can't be used with its key: " in refusal(certificate=str(file)).lines[0]


def test_a_certificate_that_only_openssl_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> Certificate:
        raise ValueError("a field is missing")

    monkeypatch.setattr("echod.x509.parse", fail)
    assert refusal(certificate=pem_file()).lines[0].endswith("can't be read as a certificate: a field is missing")


def test_a_key_with_a_passphrase_never_prompts(file: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    best = serialization.BestAvailableEncryption(b"secret")
    form = serialization.PrivateFormat.PKCS8
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, best))
    text = refusal(certificate=pem_file(), key=str(file)).lines[0]
    assert text == f"{file}: tls.key: needs a passphrase, which echod can't ask for: store it without"


def test_settings_that_miss_another_one() -> None:
    """The line says where the setting is that needs the other one."""
    (line,) = refusal().lines
    assert line.endswith(": tls.certificate: must name a PEM file, because tls.port is set")
    assert not line.startswith("default")
    (line,) = refusal(certificate=pem_file(), verify="required").lines
    assert line.endswith(': tls.client_ca: must name a PEM file, because tls.verify is "required"')
    assert not line.startswith("default")


def test_a_port_is_used_once() -> None:
    values = {"listen__port": "7443"}
    with pytest.raises(Refusal, match=r"tls.port: port 7443 is also listen.port"):
        settings(tls__port=7443, tls__certificate=pem_file(), **values)
    with pytest.raises(Refusal, match=r"admin.http: port 7443 is also tls.port, on \*"):
        settings(tls__port=7443, tls__certificate=pem_file(), admin__http="127.0.0.1:7443")
    with pytest.raises(Refusal, match=r'tls.port: must be a port from 0 to 65535, or "off"; got "65536"'):
        settings(tls__port="65536")


def test_a_port_has_this_form() -> None:
    with pytest.raises(Refusal, match=r'tls.port: must be a port, e.g. 7007, or "off"; got "https"'):
        settings(tls__port="https")
    with pytest.raises(Refusal, match=r'tls.key: must be a path that begins with "/", got "key.pem"'):
        settings(tls__key="key.pem")


def test_authorities_without_verify_have_no_effect(tmp_path: Path) -> None:
    loaded = load(tmp_path / "x.toml", f"[tls]\nclient_ca = '{authority_file()}'\n")
    assert loaded.warnings == [f'{tmp_path}/x.toml:2: tls.client_ca: has no effect, tls.verify is "none"']


def test_a_reload_that_verifies_less_has_a_warning() -> None:
    tls = {"tls__port": 7443, "tls__certificate": pem_file(), "tls__client_ca": authority_file()}
    strict, lax = settings(**tls, tls__verify="required"), settings(**tls, tls__verify="optional")
    (line,) = checks.widened(strict, lax, (), binds=True)
    assert line.endswith('certificates of clients are "optional", they were "required"')
    assert list(checks.widened(lax, strict, (), binds=True)) == []


def test_a_reload_without_tls_verifies_nobody_less() -> None:
    """Nobody can connect there any more."""
    tls = {"tls__port": 7443, "tls__certificate": pem_file(), "tls__client_ca": authority_file()}
    assert list(checks.widened(settings(**tls, tls__verify="required"), settings(), (), binds=True)) == []


@pytest.mark.parametrize(
    ("begin", "end", "bits", "text"),
    [
        (-9, -1, 0, "has expired at"),
        (-9, 13, 0, "expires at"),
        (1, 90, 0, "is not valid before"),
        (-9, 90, 4096, "has an RSA key of 4096 bits"),
    ],
)
def test_what_needs_attention(begin: int, end: int, bits: int, text: str) -> None:
    tls = settings(tls__port=7443, tls__certificate=pem_file()).tls
    assert checks.certificates(settings(tls__port=7443, tls__certificate=pem_file())) == []
    odd = Certificate("CN=x", NOW + timedelta(days=begin), NOW + timedelta(days=end), bits)
    (line,) = certificates.warnings(tls, odd)
    assert line.startswith(f"{pem_file()}: tls.certificate: {text}")


def test_a_key_that_every_user_can_read(file: Path) -> None:
    file.write_bytes(Path(pem_file()).read_bytes())
    file.chmod(0o644)
    (line,) = checks.certificates(settings(tls__port=7443, tls__certificate=str(file)))
    assert line == f"{file}: tls.key: every user of this machine can read it: chmod o-r"


@pytest.mark.parametrize("times", [1, 3])
def test_files_that_are_replaced_meanwhile_are_read_again(
    monkeypatch: pytest.MonkeyPatch, file: Path, times: int
) -> None:
    """The certificate is read before the key: a renewal may come in between."""
    tls = settings(tls__port=7443, tls__certificate=pem_file()).tls.model_copy(update={"certificate": str(file)})
    file.write_text("nonsense")
    read, asked = certificates._read, []

    def replace(setting: str, name: str) -> bytes:
        found = read(setting, name)
        asked.append(name)
        new = file.with_suffix(".new")
        new.write_text("nonsense" if len(asked) < times else Path(pem_file()).read_text())
        new.rename(file)
        return found

    monkeypatch.setattr(certificates, "_read", replace)
    assert certificates.load(tls).certificate.subject


def test_what_was_read_belongs_together_if_files_are_replaced_meanwhile(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    """OpenSSL reads them once more: what echod says of the certificate is said of the one that clients see."""
    file.write_bytes(Path(pem_file()).read_bytes())
    tls = settings(tls__port=7443, tls__certificate=str(file)).tls
    read = certificates._read

    def replace(setting: str, name: str) -> bytes:
        found = read(setting, name)
        if found == Path(pem_file()).read_bytes():
            new = file.with_suffix(".new")
            new.write_bytes(Path(pem_file("other")).read_bytes())
            new.rename(file)
        return found

    monkeypatch.setattr(certificates, "_read", replace)
    assert "CN=other" in certificates.load(tls).certificate.subject


def test_files_with_other_contents_are_renewed(tmp_path: Path) -> None:
    """Not one that the settings have not named before: then they say what has changed."""
    certificate, key, authority = (tmp_path / name for name in ("certificate", "key", "authority"))
    one, two = (Path(pem_file(name)) for name in ("localhost", "other"))

    def write(leaf: Path, ca: str) -> certificates.Loaded:
        shutil.copy(leaf, certificate)
        shutil.copy(leaf, key)
        shutil.copy(authority_file(ca), authority)
        return certificates.load(tls)

    tls = settings(tls__port=7443, tls__certificate=pem_file()).tls.model_copy(
        update={"certificate": str(certificate), "key": str(key), "client_ca": str(authority), "verify": "optional"}
    )
    first = write(one, "one")
    assert (first.renewed(None), write(one, "one").renewed(first)) == ({}, {})
    assert write(one, "two").renewed(first) == {"tls.client_ca": str(authority)}
    last = write(two, "one")
    assert last.renewed(first) == {"tls.certificate": str(certificate), "tls.key": str(key)}
    tls = tls.model_copy(update={"certificate": pem_file("other"), "key": "", "verify": "none"})
    assert certificates.load(tls).renewed(first) == {}
    assert last.renewed(certificates.load(tls)) == {}


def test_ciphers_have_forward_secrecy_and_authenticate_each_record() -> None:
    """With AEAD. CBC would have a MAC of its own, and attacks on its padding."""
    ciphers = certificates.load(settings(tls__port=7443, tls__certificate=pem_file()).tls).context.get_ciphers()
    described = [each["description"] for each in ciphers]
    assert len(described) > 3
    assert all("Mac=AEAD" in each and ("TLSv1.3" in each or "Kx=ECDH " in each) for each in described), described
