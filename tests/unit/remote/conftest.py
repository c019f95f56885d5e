"""Fixtures for modules that talk to a server of S3 on loopback."""

import datetime
import ipaddress
import os
import ssl

import pytest

from fakes3 import FakeS3


@pytest.fixture
def own_environment(monkeypatch, tmp_path):
    """An environment in which no configuration of this machine has an effect; the home."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOCACHE_", "SSL_CERT", "REQUESTS_")) or name.lower().endswith(
            "_proxy"
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


@pytest.fixture
def keys(own_environment, monkeypatch):
    """Credentials in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tester-secret")


@pytest.fixture
def server():
    server = FakeS3()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """The path of a file with a self-signed certificate for 127.0.0.1 and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(encoding, form, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(encoding) + secret)
    return path


@pytest.fixture
def tls_server(server, certificate):
    """A server with TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    socket = server._server.socket
    # The handshake is left to the handler's thread, so that a failed one ends no server.
    server._server.socket = context.wrap_socket(
        socket, server_side=True, do_handshake_on_connect=False
    )
    server.url = server.url.replace("http:", "https:")
    return server
