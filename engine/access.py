"""API keys: who may call, in which role, for which merchant.

A secret is `hfk_<id>_<random><checksum>`: 8, 32 and 6 digits of base 62, so a scanner recognises a
leaked one, and a mistyped one is refused without asking the store. The store keeps the SHA-256 of
the whole secret; 190 random bits need no slow hash. `engine.keys.API_KEYS_KEY` names the hash that
holds one record a key, by id, and beside it the key's rate limit where it has one.

A browser does not keep a secret: it hands it in once for a session, `hfs_<random>`, which stands
for the key until it ends, the key is revoked, or somebody signs out. Of it, too, the store keeps
only a digest.
"""

import asyncio
import re
import secrets
import string
from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar
from zlib import crc32

import msgspec
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from engine.keys import API_KEYS_KEY, SESSIONS_KEY
from engine.limits import MAX_ID_BYTES
from engine.outcomes import InvalidCommand, LimitExceeded, StoreFault, StoreUnavailable
from engine.store import Client

FIRST_ADMIN_ID: Final = "00000000"
"""Id of the key that `ensure_admin_key` makes: being fixed, one HSETNX can make it only once."""

MAX_API_KEYS: Final = 10_000
"""Keys of a store, revoked ones included: `list_keys` reads them all in one reply."""

POSITIVE_SECONDS: Final = 2.0
"""How long a good answer is believed, so also how long a revoked key may go on."""

OUTAGE_SECONDS: Final = 60.0
"""How long it is believed while the store does not answer: nothing can be written then, a
revocation neither, and what is read is what a gateway remembers itself."""

NEGATIVE_SECONDS: Final = 1.0

MAX_POSITIVE: Final = MAX_API_KEYS
MAX_NEGATIVE: Final = 10_000

MAX_LOOKUPS: Final = 8
"""Lookups under way at once: a flood of invented secrets must not take every connection."""

LOOKUP_SECONDS: Final = 2.0
"""How long a caller waits for a lookup, the wait for a free one included."""

MAX_RATE_PER_SECOND: Final = 1_000_000
"""Of a rate limit, and of its burst: no gateway reaches it, so more is a typing error."""

SESSION_SECONDS: Final = 12 * 3_600
"""A working day: whoever signed in is asked for the key again after it."""

_ID_DIGITS: Final = 8
_SECRET_DIGITS: Final = 32
_CHECKSUM_DIGITS: Final = 6
_BASE62: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SESSION_DIGITS: Final = 43
_SESSION_FORM = re.compile(r"hfs_[0-9A-Za-z]{43}")
_FORM = re.compile(r"hfk_([0-9A-Za-z]{8})_[0-9A-Za-z]{32}([0-9A-Za-z]{6})")
_MAX_ATTEMPTS: Final = 5
_LIMIT_SUFFIX: Final = ":rate_limit"
"""Ends the name of the field that holds a key's limit; an id has no colon."""

Remembered = TypeVar("Remembered")


class Role(StrEnum):
    """What a key may do; every role may read."""

    READ = "read"
    RESERVE = "reserve"
    FEED = "feed"
    ADMIN = "admin"

    def allows(self, needed: "Role") -> bool:
        """Say whether a key of this role may do what needs the role `needed`."""
        return needed is self or needed is Role.READ or self is Role.ADMIN


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """How many units of work a key may ask for: `per_second`, and `burst` at once after a pause.

    What a request costs is the gateway's to say (`gateway.rate_limits`).
    """

    per_second: int
    burst: int

    @classmethod
    def of(cls, per_second: int, burst: int | None = None) -> "RateLimit":
        """Make a limit; without a `burst` it is what a second brings. Raises InvalidCommand."""
        burst = per_second if burst is None else burst
        if not 1 <= per_second <= MAX_RATE_PER_SECOND:
            raise InvalidCommand("rate_limit", f"must be 1 to {MAX_RATE_PER_SECOND} a second")
        if not per_second <= burst <= MAX_RATE_PER_SECOND:
            # With less, an even stream at the full rate would already be refused now and then.
            raise InvalidCommand("burst", f"must be {per_second} to {MAX_RATE_PER_SECOND}")
        return cls(per_second=per_second, burst=burst)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a key, without its secret. `merchant` is None for the whole platform."""

    id: str
    role: Role
    merchant: str | None
    label: str
    created_at_ms: int
    revoked_at_ms: int | None = None
    rate_limit: RateLimit | None = None

    @property
    def actor(self) -> str:
        """Name the key as the ledger does."""
        return f"key:{self.id}"


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    digest: str
    role: Role
    merchant: str | None
    label: str
    created_at_ms: int
    revoked_at_ms: int | None = None

    def describe(self, key_id: str, limit: bytes | None = None) -> ApiKey:
        return ApiKey(
            id=key_id,
            role=self.role,
            merchant=self.merchant,
            label=self.label,
            created_at_ms=self.created_at_ms,
            revoked_at_ms=self.revoked_at_ms,
            rate_limit=None if limit is None else _LIMITS.decode(limit),
        )


_RECORDS = msgspec.json.Decoder(_Record)
_LIMITS = msgspec.json.Decoder(RateLimit)


def parse_secret(text: str) -> str | None:
    """Return the id of the key, or None where `text` lacks the form or its checksum is wrong."""
    match = _FORM.fullmatch(text)
    if match is None or match[2] != _checksum(text[:-_CHECKSUM_DIGITS]):
        return None
    return match[1]


def is_session(text: str) -> bool:
    """Say whether `text` has the form of a session's token."""
    return _SESSION_FORM.fullmatch(text) is not None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session as whoever opened it gets it; the token is nowhere kept."""

    token: str
    expires_at_ms: int


async def open_session(client: Client, key_id: str, *, seconds: int = SESSION_SECONDS) -> Session:
    """Let a new token stand for a key. Raises StoreUnavailable."""
    token = f"hfs_{_random(_SESSION_DIGITS)}"
    expires_at_ms = await _store_time_ms(client) + seconds * 1000
    await _ask(client, "SET", _session_key(token), key_id, "PX", str(seconds * 1000))
    return Session(token=token, expires_at_ms=expires_at_ms)


async def close_session(client: Client, token: str) -> None:
    """End a session; gateways notice within POSITIVE_SECONDS. Raises StoreUnavailable."""
    await _ask(client, "DEL", _session_key(token))


async def create_key(
    client: Client,
    *,
    role: Role,
    merchant: str | None,
    label: str,
    rate_limit: RateLimit | None = None,
) -> tuple[ApiKey, str]:
    """Make a key and return it with its secret, which is nowhere kept.

    Raises InvalidCommand where the merchant or the label is not of its form, LimitExceeded past
    MAX_API_KEYS, StoreUnavailable.
    """
    if merchant is not None:
        _check_text("merchant", merchant, least_bytes=1)
    _check_text("label", label, least_bytes=0)
    fields: list[bytes] = await _ask(client, "HKEYS", API_KEYS_KEY)
    if sum(not _is_limit(field) for field in fields) >= MAX_API_KEYS:
        raise LimitExceeded("api_keys", most=MAX_API_KEYS)
    created_at_ms = await _store_time_ms(client)
    for _ in range(_MAX_ATTEMPTS):
        key_id = _random(_ID_DIGITS)
        secret = _make_secret(key_id)
        record = _Record(
            digest=_digest(secret),
            role=role,
            merchant=merchant,
            label=label,
            created_at_ms=created_at_ms,
        )
        if await _ask(client, "HSETNX", API_KEYS_KEY, key_id, msgspec.json.encode(record)):
            limit = None if rate_limit is None else msgspec.json.encode(rate_limit)
            if limit is not None:
                # Nobody has the secret yet, so there is no moment without the limit.
                await _ask(client, "HSET", API_KEYS_KEY, _limit_field(key_id), limit)
            return record.describe(key_id, limit), secret
    raise StoreFault("hsetnx", f"{_MAX_ATTEMPTS} random key ids were taken")


async def ensure_admin_key(client: Client) -> str | None:
    """Make the first admin key and return its secret; None where it was made before.

    A second caller, a restart and a lost reply all meet the same record, so there is never more
    than one. Raises StoreUnavailable.
    """
    secret = _make_secret(FIRST_ADMIN_ID)
    record = _Record(
        digest=_digest(secret),
        role=Role.ADMIN,
        merchant=None,
        label="first admin key",
        created_at_ms=await _store_time_ms(client),
    )
    encoded = msgspec.json.encode(record)
    try:
        if await _ask(client, "HSETNX", API_KEYS_KEY, FIRST_ADMIN_ID, encoded):
            return secret
    except StoreUnavailable:
        # The reply may be lost and the record written: then nobody would ever know its secret.
        if await _ask(client, "HGET", API_KEYS_KEY, FIRST_ADMIN_ID) == encoded:
            return secret
        raise
    return None


async def list_keys(client: Client) -> list[ApiKey]:
    """Return every key, revoked ones too, oldest first. Raises StoreUnavailable."""
    records: dict[bytes, bytes] = await _ask(client, "HGETALL", API_KEYS_KEY)
    keys = [
        _RECORDS.decode(record).describe(
            key.decode(), records.get(_limit_field(key.decode()).encode())
        )
        for key, record in records.items()
        if not _is_limit(key)
    ]
    return sorted(keys, key=lambda key: (key.created_at_ms, key.id))


async def revoke_key(client: Client, key_id: str) -> ApiKey | None:
    """Revoke a key for good and return it; None where there is none of that id.

    Revoking again changes nothing. Gateways notice within POSITIVE_SECONDS. Raises
    StoreUnavailable.
    """
    text, limit = await _ask(client, "HMGET", API_KEYS_KEY, key_id, _limit_field(key_id))
    if text is None or _is_limit(key_id.encode()):
        return None
    record = _RECORDS.decode(text)
    if record.revoked_at_ms is None:
        # Nothing else ever changes a record, so to read and then write loses nothing.
        record = msgspec.structs.replace(record, revoked_at_ms=await _store_time_ms(client))
        await _ask(client, "HSET", API_KEYS_KEY, key_id, msgspec.json.encode(record))
    return record.describe(key_id, limit)


async def limit_key(client: Client, key_id: str, limit: RateLimit | None) -> ApiKey | None:
    """Set a key's rate limit, None to lift it, and return the key; None where there is none.

    Gateways notice within POSITIVE_SECONDS. Raises StoreUnavailable.
    """
    text: bytes | None = await _ask(client, "HGET", API_KEYS_KEY, key_id)
    if text is None or _is_limit(key_id.encode()):
        return None
    # A field of its own: were it part of the record, this could undo a revocation made meanwhile.
    field = _limit_field(key_id)
    encoded = None if limit is None else msgspec.json.encode(limit)
    if encoded is None:
        await _ask(client, "HDEL", API_KEYS_KEY, field)
    else:
        await _ask(client, "HSET", API_KEYS_KEY, field, encoded)
    return _RECORDS.decode(text).describe(key_id, encoded)


class _Good(NamedTuple):
    """A key that the store knew `found_at`; it is not asked again before `until`."""

    key: ApiKey
    found_at: float
    until: float


class KeyCache:
    """Tells who a secret belongs to, and remembers it for a moment.

    Bad secrets are remembered apart from good ones, so that a flood of them cannot push the good
    ones out. Only digests are kept, never a secret.
    """

    def __init__(self, client: Client, *, clock: Callable[[], float] = monotonic) -> None:
        """Ask `client`; `clock` gives seconds that only rise."""
        self._client = client
        self._clock = clock
        self._good: OrderedDict[bytes, _Good] = OrderedDict()
        self._bad: OrderedDict[bytes, float] = OrderedDict()
        self._lookups: dict[bytes, asyncio.Task[ApiKey | None]] = {}
        self._free = asyncio.Semaphore(MAX_LOOKUPS)

    def forget(self, secret: str) -> None:
        """Ask the store the next time that this secret or token comes."""
        self._good.pop(_digest_of(secret), None)

    async def authenticate(self, secret: str) -> ApiKey | None:
        """Return the key of a secret, or of a session's token.

        None where it is malformed, unknown, revoked or, of a session, over.

        While the store does not answer, a key is good for as long as it was found good at most
        OUTAGE_SECONDS ago. Raises StoreUnavailable where it was not: who cannot be checked is not
        let in.
        """
        digest = _digest_of(secret)
        now = self._clock()
        good = self._good.get(digest)
        if good is not None and now < good.until:
            return good.key
        key_id = parse_secret(secret)
        if key_id is None and not is_session(secret):
            return None
        if now < self._bad.get(digest, 0.0):
            return None
        # Concurrent callers with one secret share one lookup, and one who goes away leaves it be.
        lookup = self._lookups.get(digest)
        if lookup is None:
            lookup = asyncio.get_running_loop().create_task(self._look_up(key_id, digest))
            self._lookups[digest] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(digest, None))
        try:
            return await asyncio.shield(lookup)
        except StoreUnavailable:
            good, now = self._good.get(digest), self._clock()
            if good is None or now >= good.found_at + OUTAGE_SECONDS:
                raise
            self._good[digest] = good._replace(until=now + POSITIVE_SECONDS)
            return good.key

    async def _look_up(self, named: str | None, digest: bytes) -> ApiKey | None:
        """Ask for the key that a secret names; None is a session, of which the store knows it."""
        text = limit = None
        try:
            async with asyncio.timeout(LOOKUP_SECONDS), self._free:
                asked_at = self._clock()
                key_id = named or await self._key_of_session(digest)
                if key_id is not None:
                    text, limit = await _ask(
                        self._client, "HMGET", API_KEYS_KEY, key_id, _limit_field(key_id)
                    )
        except TimeoutError as error:
            raise StoreUnavailable() from error
        record = None if text is None else _RECORDS.decode(text)
        if (
            key_id is None
            or record is None
            or (named is not None and not compare_digest(record.digest, digest.hex()))
            or record.revoked_at_ms is not None
        ):
            self._good.pop(digest, None)
            _remember(self._bad, digest, asked_at + NEGATIVE_SECONDS, MAX_NEGATIVE)
            return None
        key = record.describe(key_id, limit)
        good = _Good(key, asked_at, asked_at + POSITIVE_SECONDS)
        _remember(self._good, digest, good, MAX_POSITIVE)
        return key

    async def _key_of_session(self, digest: bytes) -> str | None:
        found: bytes | None = await _ask(self._client, "GET", SESSIONS_KEY + digest.hex())
        return None if found is None else found.decode()


def _digest_of(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _session_key(token: str) -> str:
    return SESSIONS_KEY + _digest_of(token).hex()


def _remember(
    cache: OrderedDict[bytes, Remembered], digest: bytes, value: Remembered, most: int
) -> None:
    cache[digest] = value
    cache.move_to_end(digest)
    while len(cache) > most:
        cache.popitem(last=False)


async def _ask(client: Client, command: str, *args: str | bytes, **options: Any) -> Any:
    """Run a command; a driver error becomes one of ours, the cause kept."""
    try:
        return await client.execute_command(command, *args, **options)
    except (ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError) as error:
        raise StoreUnavailable() from error
    except ResponseError as error:
        raise StoreFault(command, str(error)) from error
    except (RedisError, OSError) as error:
        raise StoreUnavailable() from error


async def _store_time_ms(client: Client) -> int:
    options: dict[str, Any] = {}
    if isinstance(client, RedisCluster):
        options["target_nodes"] = RedisCluster.RANDOM
    seconds, microseconds = await _ask(client, "TIME", **options)
    return int(seconds) * 1000 + int(microseconds) // 1000


def _check_text(field: str, text: str, *, least_bytes: int) -> None:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        length = -1
    if not least_bytes <= length <= MAX_ID_BYTES:
        raise InvalidCommand(field, f"must be {least_bytes} to {MAX_ID_BYTES} bytes of UTF-8")


def _limit_field(key_id: str) -> str:
    return key_id + _LIMIT_SUFFIX


def _is_limit(field: bytes) -> bool:
    return field.endswith(_LIMIT_SUFFIX.encode())


def _make_secret(key_id: str) -> str:
    body = f"hfk_{key_id}_{_random(_SECRET_DIGITS)}"
    return body + _checksum(body)


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def _random(digits: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(digits))


def _checksum(body: str) -> str:
    """Write the CRC-32 of `body` in six digits of base 62, as GitHub's tokens do."""
    rest = crc32(body.encode())
    digits = ""
    for _ in range(_CHECKSUM_DIGITS):
        rest, digit = divmod(rest, len(_BASE62))
        digits = _BASE62[digit] + digits
    return digits
