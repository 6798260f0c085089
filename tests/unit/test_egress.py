import asyncio
import ipaddress
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from standardwebhooks import Webhook, WebhookVerificationError

from engine.outcomes import InvalidCommand
from gateway.egress import Egress, Failure, NoAnswer, check_url, is_public
from gateway.signing import headers, new_secret
from tests.receivers import Received, Receiver, answer

PRIVATE = (
    "0.0.0.1", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1",
    "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.0.1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::1",
    "2002:808:808::1", "3fff::1", "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%eth0",
    "fec0::1", "ff02::1", "5f00::1", "4000::1",
)  # fmt: skip
PUBLIC = ("8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1",
          "64:ff9b::8.8.8.8")  # fmt: skip


@pytest.mark.parametrize("text", PRIVATE)
def test_an_address_that_is_not_of_the_public_internet_is_told(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_an_address_of_the_public_internet_is_taken(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks", "http://example.com/", "ftp://example.com/", "https://", "https:///x",
        "https://user@example.com/", "https://user:pw@example.com/", "https://example.com/#x",
        "https://example.com/#", "https://example.com:0/", "https://example.com:x/",
        "https://example.com:70000/", "https://exa mple.com/", "https://ex\u00e4mple.com/",
        "https://example.com/\n", "https://localhost/", "https://127.0.0.1/", "https://[::1]/",
        "https://10.0.0.1/", "https://[fe80::1]/", "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest", "https://[::1/", "https://example.com\\@127.0.0.1/",
        "https://" + "x" * 254 + "/", "https://example.com/" + "x" * 2000,
        "file:///etc/passwd", "HTTP://example.com", "//example.com",
    ],
)  # fmt: skip
def test_a_url_that_leads_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(InvalidCommand) as refused:
        check_url("url", url, loopback=False)
    assert refused.value.field == "url"


def test_this_machine_is_asked_only_where_that_is_allowed() -> None:
    check_url("url", "https://example.com:8443/hook?x=1", loopback=False)
    for url in ("http://127.0.0.1:80/", "http://localhost/", "http://[::1]:8080/", "https://[::1]"):
        check_url("url", url, loopback=True)
    for url in ("http://example.com/", "http://10.0.0.1/", "https://10.0.0.1/",
                "http://[::ffff:127.0.0.1]/"):  # fmt: skip
        with pytest.raises(InvalidCommand):
            check_url("url", url, loopback=True)


class Names:
    """A resolver that answers in turn, and then with the last answer for good."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not found:
            raise OSError("no such name")
        return found


async def failure_of(egress: Egress, url: str) -> Failure:
    try:
        with pytest.raises(NoAnswer) as raised:
            await egress.post(url, b"{}", [])
        return raised.value.failure
    finally:
        await egress.close()


@pytest.mark.parametrize("address", [*PRIVATE[:12], "::ffff:127.0.0.1", "fe80::1%eth0", "not one"])
async def test_a_name_that_leads_to_a_private_address_is_not_asked(address: str) -> None:
    # One bad address among good ones is enough: which one would be taken is anybody's guess.
    names = Names(["8.8.8.8", address])
    assert await failure_of(Egress(find=names), "https://x.example/") is Failure.FORBIDDEN_ADDRESS


async def test_a_name_without_an_address_and_one_with_too_many_are_told_apart() -> None:
    assert await failure_of(Egress(find=Names([])), "https://x.example/") is Failure.UNRESOLVED
    many = Names([f"8.8.{n}.8" for n in range(17)])
    assert await failure_of(Egress(find=many), "https://x.example/") is Failure.FORBIDDEN_ADDRESS
    refused = Egress(loopback=True)
    assert await failure_of(refused, "http://127.0.0.1:1/") is Failure.UNREACHABLE


async def test_a_name_that_is_rebound_meanwhile_changes_nothing() -> None:
    # What was checked is what is connected to; the second answer would lead inside.
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    async with Receiver() as receiver:
        egress = Egress(loopback=True, find=names)
        url = f"http://localhost:{receiver.port}/hook"
        assert (await egress.post(url, b"{}", [])).status == 204
        assert names.asked == [("localhost", receiver.port)]
        # The kept connection still leads to the address that was checked for it.
        assert (await egress.post(url, b"{}", [])).status == 204
        assert len(names.asked) == 1
        assert receiver.received[0].headers["host"] == f"localhost:{receiver.port}"
        assert await failure_of(
            Egress(loopback=True, find=names), url
        ) is Failure.FORBIDDEN_ADDRESS  # fmt: skip
        await egress.close()
    assert len(receiver.received) == 2


async def test_a_second_address_is_tried_where_the_first_does_not_answer() -> None:
    async with Receiver() as receiver:
        egress = Egress(loopback=True, find=Names(["127.0.0.2", "127.0.0.1"]))
        url = f"http://localhost:{receiver.port}/"
        assert (await egress.post(url, b"{}", [])).status == 204
        await egress.close()


async def test_no_redirect_is_followed_and_no_long_answer_is_read() -> None:
    async with Receiver() as receiver, Receiver() as other:

        async def redirect(_: Received) -> bytes:
            return answer(307, f"Location: {other.url}\r\n")

        async def endless(_: Received) -> bytes:
            return (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                + (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 64
            )

        egress = Egress(loopback=True)
        receiver.answering = redirect
        assert (await egress.post(receiver.url, b"{}", [])).status == 307
        assert other.received == []
        receiver.answering = endless
        assert (await egress.post(receiver.url, b"{}", [])).status == 200
        await egress.close()


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        (b"garbage\r\n\r\n", Failure.BROKEN),
        (b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000 + b"\r\n\r\n", Failure.BROKEN),
        (b"", Failure.TIMEOUT),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", Failure.TIMEOUT),
    ],
)
async def test_an_answer_that_is_none_or_never_ends_is_given_up(
    said: bytes, failure: Failure
) -> None:
    async with Receiver() as receiver:

        async def say(_: Received) -> bytes:
            return said

        receiver.answering = say
        egress = Egress(loopback=True, attempt_seconds=0.3)
        assert await failure_of(egress, receiver.url) is failure


def certificate(name: str) -> tuple[bytes, bytes]:
    """Make a certificate of its own authority for a name; both in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return made.public_bytes(serialization.Encoding.PEM), private


async def test_tls_is_checked_for_the_name_although_the_address_is_pinned(tmp_path: Path) -> None:
    public, private = certificate("hooks.example")
    (tmp_path / "cert.pem").write_bytes(public + private)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(tmp_path / "cert.pem")
    asked: list[Any] = []
    served.sni_callback = lambda _socket, name, _context: asked.append(name)
    hosts: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hosts.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(204))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=served)
    port = server.sockets[0].getsockname()[1]
    trusting = ssl.create_default_context(cadata=public.decode())
    names = Names(["127.0.0.1"])
    egress = Egress(loopback=True, find=names, tls=trusting)
    reply = await egress.post(f"https://hooks.example:{port}/hook", b"", [])
    assert reply.status == 204
    assert asked == ["hooks.example"]
    assert f"host: hooks.example:{port}\r\n".encode() in hosts[0].lower()
    await egress.close()
    for url, tls in (
        (f"https://other.example:{port}/", trusting),
        (f"https://hooks.example:{port}/", None),
    ):
        strict = Egress(loopback=True, find=names, tls=tls)
        assert await failure_of(strict, url) is Failure.TLS
    server.close()


def test_a_message_is_signed_as_standard_webhooks_has_it() -> None:
    old, new = new_secret(), new_secret()
    body = '{"type":"stock.changed","data":{"sku":"caf\u00e9"}}'.encode()
    now = int(datetime.now(UTC).timestamp())
    signed = dict(headers("evt_1", body, signed_with=[new, old], at_seconds=now))
    for secret in (old, new):
        assert Webhook(secret).verify(body, signed)["type"] == "stock.changed"
    for altered in (
        {**signed, "webhook-id": "evt_2"},
        {**signed, "webhook-timestamp": str(now - 1)},
        dict(headers("evt_1", body, signed_with=[new_secret()], at_seconds=now)),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(new).verify(body, altered)
    with pytest.raises(WebhookVerificationError):
        Webhook(new).verify(body + b" ", signed)
