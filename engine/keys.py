"""Every key in the store is built here, and nowhere else.

A partition is the unit of co-location: all keys of a merchant's location carry one hash tag, so a
cart is one script on one cluster slot. Ids are percent-encoded, so that `:`, `{`, `}`, control
characters and any Unicode are harmless in a key.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple
from urllib.parse import quote, unquote
from zlib import crc32

STORE_KEY: Final = "{hf}:store"
"""Hash of what was fixed when the store was made: partitions, schema_version, created_at, and
store_id, a random name that its archive goes by; and archive_url, where it was last archived to."""

API_KEYS_KEY: Final = "{hf}:apikeys"
"""Hash from an API key's public part to its record (see `engine.access`)."""

SESSIONS_KEY: Final = "{hf}:session:"
"""Begins the name of the string of one session of the console; the SHA-256 of what the browser
keeps ends it (see `engine.access`)."""

POLICIES_KEY: Final = "{hf}:policies"
"""Hash from a merchant, or a location as in `locations`, to its policy (see `engine.policies`)."""

PLACES_KEY: Final = "{hf}:places"
"""Hash from a location, as in `locations`, to its settings for sourcing (see `engine.places`)."""

MOVED_KEY: Final = "{hf}:moved"
"""Hash from a reservation's hash (the end of its id) to the partition that it is in now. Written
when a rebuild changes the number of partitions, since ids made before then name the old one."""

SWEEPER_KEY: Final = "{hf}:sweeper"
"""String: the sweeper's sign of life (JSON, see `engine.sweeper`)."""

RECONCILER_KEY: Final = "{hf}:reconciler"
"""String: the reconciler's sign of life (JSON, see `engine.upkeep`)."""

AUDIT_KEY: Final = "{hf}:audit"
"""Hash from a partition's number to what the running audit last found there (JSON)."""

JOBS_KEY: Final = "{hf}:jobs"
"""Hash from a job's id to what was asked for and how it stands (JSON, see `engine.jobs`)."""

JOB_RESULTS_KEY: Final = "{hf}:job-results"
"""Hash from a job's id to what came of it (JSON), and from `<id>:steps` to a plan (MessagePack)."""

WEBHOOKS_KEY: Final = "{hf}:webhooks"
"""Hash from a webhook endpoint's id to its record (see `engine.webhooks`), and `revision`, which
rises whenever a record changes."""

PARTITION_KEYS: Final = "{hf.*}:*"
"""A pattern that every key of every partition matches, and no other key of ours."""

MAX_PARTITIONS: Final = 4096

_PLAIN = re.compile(r"[A-Za-z0-9._~-]+")
_PARTITION_KEY = re.compile(r"\{hf\.(0|[1-9][0-9]{0,3})\}:([a-z]+)(?::(.*))?", re.DOTALL)
_ORDER_ID = re.compile(r"(?:ord|mov)_(0|[1-9][0-9]{0,3})_[0-9a-f]{24}")
_RESERVATION_ID = re.compile(r"rsv_(0|[1-9][0-9]{0,3})_[0-9a-f]{24}")


@lru_cache(maxsize=65_536)
def encode(text: str) -> str:
    """Percent-encode an id (RFC 3986 unreserved characters stay as they are)."""
    if _PLAIN.fullmatch(text):
        return text
    return quote(text, safe="")


def partition_of(merchant: str, location: str, partitions: int) -> int:
    """Return the partition, 0 to `partitions` - 1, that a merchant's location lives in."""
    return crc32(f"{merchant}\0{location}".encode()) % partitions


def reservation_id(partition: int, merchant: str, location: str, idempotency_key: str) -> str:
    """Derive the id of the reservation that an idempotency key makes at a location.

    Deriving it makes the reservation its own idempotency record: a retry names the same one. 96
    bits of BLAKE2b; a collision would meet the fingerprint check, not another's reservation.
    """
    return f"rsv_{partition}_{digest(merchant, location, idempotency_key)}"


def partition_of_reservation(reservation: str, partitions: int) -> int | None:
    """Return the partition that an id carries, or None where it is no id of this store."""
    match = _RESERVATION_ID.fullmatch(reservation)
    if match is None:
        return None
    partition = int(match[1])
    return partition if partition < partitions else None


def reservation_hash(reservation: str) -> str:
    """Return the part of an id that stays the same whatever partition the reservation is in."""
    return reservation.rpartition("_")[2]


def moved_reservation_id(reservation: str, partition: int) -> str:
    """Return the id that a reservation has in another partition."""
    return f"rsv_{partition}_{reservation_hash(reservation)}"


def order_id(kind: str, merchant: str, idempotency_key: str, partitions: int) -> str:
    """Derive the id of the record that an idempotency key makes; as with a reservation's.

    Orders have no location: which partition one is in follows from the hash in its id.
    """
    the_hash = digest(kind, merchant, idempotency_key)
    return f"{kind[:3]}_{order_partition(merchant, the_hash, partitions)}_{the_hash}"


def order_partition(merchant: str, the_hash: str, partitions: int) -> int:
    """Return the partition of the record whose id ends in `the_hash`."""
    return partition_of(merchant, f"order {the_hash}", partitions)


def partition_of_order(order: str, partitions: int) -> int | None:
    """Return the partition that the id of a record carries, None where it is no id of one."""
    match = _ORDER_ID.fullmatch(order)
    if match is None:
        return None
    partition = int(match[1])
    return partition if partition < partitions else None


def is_order_id(text: str) -> bool:
    """Tell whether a text has the form of an order's id."""
    return text.startswith("ord_") and _ORDER_ID.fullmatch(text) is not None


def is_move_id(text: str) -> bool:
    """Tell whether a record is that of a move to another location, by its id."""
    return text.startswith("mov_")


def claim_partition(merchant: str, buyer: str, partitions: int) -> int:
    """Return the partition of what counts for a buyer, by their digest, over all locations."""
    return partition_of(merchant, f"buyer {buyer}", partitions)


def moved_order_id(order: str, partition: int) -> str:
    """Return the id that a record has in another partition."""
    return f"{order[:3]}_{partition}_{reservation_hash(order)}"


def digest(*parts: str) -> str:
    """Hash parts into 24 hexadecimal digits; ("a", "bc") and ("ab", "c") differ."""
    text = "\0".join([str(len(part)) + ":" + part for part in parts])
    return blake2b(text.encode(), digest_size=12).hexdigest()


def digest_of_buyer(merchant: str, buyer: str) -> str:
    """Return what is kept of a buyer's name; nothing of an empty one."""
    return digest("buyer", merchant, buyer) if buyer else ""


@dataclass(frozen=True, slots=True)
class PartitionKeys:
    """The keys of one partition."""

    partition: int
    tag: str = field(init=False)
    meta: str = field(init=False)
    ledger: str = field(init=False)
    holds: str = field(init=False)
    locations: str = field(init=False)
    feeding: str = field(init=False)
    """Sorted set of the locations that have sources of events, as in `locations`."""
    shortfalls: str = field(init=False)
    """Hash of what is promised and not there, from a digest of the row's name."""
    splits: str = field(init=False)
    """Sorted set of the rows that are or were split, as `row_member` writes them."""
    intake: str = field(init=False)
    """Stream that integrators may write events to; see docs/start/feeds.md."""
    claiming: str = field(init=False)
    """Sorted set of claims, as `claim_member` writes them, by when to look at them (ms)."""
    driving: str = field(init=False)
    """Sorted set of records of orders by when somebody should look at them (ms)."""
    archive: str = field(init=False)
    """Hash: how far the ledger is archived (sequence, stream_id, seal, at, fence)."""
    readers: str = field(init=False)
    """Hash of registered readers of the ledger: name to the stream id they have read up to."""

    def __post_init__(self) -> None:
        """Build the keys that depend on the partition alone once."""
        tag = f"{{hf.{self.partition}}}"
        object.__setattr__(self, "tag", tag)
        object.__setattr__(self, "meta", f"{tag}:meta")
        object.__setattr__(self, "ledger", f"{tag}:ledger")
        object.__setattr__(self, "holds", f"{tag}:holds")
        object.__setattr__(self, "locations", f"{tag}:locations")
        object.__setattr__(self, "feeding", f"{tag}:feeding")
        object.__setattr__(self, "shortfalls", f"{tag}:shortfalls")
        object.__setattr__(self, "splits", f"{tag}:splits")
        object.__setattr__(self, "intake", f"{tag}:intake")
        object.__setattr__(self, "claiming", f"{tag}:claiming")
        object.__setattr__(self, "driving", f"{tag}:driving")
        object.__setattr__(self, "archive", f"{tag}:archive")
        object.__setattr__(self, "readers", f"{tag}:readers")

    def stock(self, merchant: str, location: str, sku: str) -> str:
        """Hash: on_hand, reserved, safety_stock, version and, where needed, deficit and counted."""
        return f"{self.tag}:stock:{encode(merchant)}:{encode(location)}:{encode(sku)}"

    def recent(self, merchant: str, location: str, sku: str) -> str:
        """String: the recent changes of a row and when they happened (`lua/lib/asof.lua`)."""
        return f"{self.tag}:recent:{encode(merchant)}:{encode(location)}:{encode(sku)}"

    def waiting(self, merchant: str, location: str, sku: str) -> str:
        """Sorted set of the reservations that wait for units of a row, in order of promise."""
        return f"{self.tag}:waiting:{encode(merchant)}:{encode(location)}:{encode(sku)}"

    def buyer(self, merchant: str, location: str, sku: str, buyer: str) -> str:
        """String: what counts for a buyer, by their digest, of a row (`lua/lib/pledges.lua`)."""
        return f"{self.tag}:buyer:{encode(merchant)}:{encode(location)}:{encode(sku)}:{buyer}"

    def claims(self, merchant: str, buyer: str) -> str:
        """String: what counts for a buyer over all locations (`lua/lib/claims.lua`)."""
        return f"{self.tag}:claims:{encode(merchant)}:{buyer}"

    def reservation(self, reservation: str) -> str:
        """Hash of a reservation; `lua/lib/reservations.lua` names its fields."""
        return f"{self.tag}:rsv:{reservation}"

    def order(self, order: str) -> str:
        """Hash of an order; `lua/order.lua` names its fields."""
        return f"{self.tag}:order:{order}"

    def orders(self, merchant: str) -> str:
        """Sorted set of a merchant's orders by when they were made (ms)."""
        return f"{self.tag}:orders:{encode(merchant)}"

    def order_refs(self, merchant: str) -> str:
        """Sorted set of `<order reference>:<order id>`, all of score 0."""
        return f"{self.tag}:orderrefs:{encode(merchant)}"

    def open_reservations(self, merchant: str, location: str) -> str:
        """Sorted set of a location's live reservation ids by when they were made (ms)."""
        return f"{self.tag}:open:{encode(merchant)}:{encode(location)}"

    def skus(self, merchant: str, location: str) -> str:
        """Sorted set of a location's SKUs, all of score 0, so in byte order."""
        return f"{self.tag}:skus:{encode(merchant)}:{encode(location)}"

    def feed(self, merchant: str, location: str, source: str) -> str:
        """Hash of a source of events: what it has sent so far (`lua/lib/sources.lua`)."""
        return f"{self.tag}:feed:{encode(merchant)}:{encode(location)}:{encode(source)}"

    def prints(self, merchant: str, location: str, source: str) -> str:
        """String: 4 bytes of the fingerprint of each of a source's last events."""
        return f"{self.tag}:prints:{encode(merchant)}:{encode(location)}:{encode(source)}"

    def feeds(self, merchant: str, location: str) -> str:
        """Sorted set of a location's sources, all of score 0, so in byte order."""
        return f"{self.tag}:feeds:{encode(merchant)}:{encode(location)}"

    def quarantine(self, merchant: str, location: str) -> str:
        """Hash of the events of a location that were set aside (`lua/lib/quarantine.lua`)."""
        return f"{self.tag}:quarantine:{encode(merchant)}:{encode(location)}"

    def rates(self, merchant: str, location: str) -> str:
        """Hash of how fast a location's rows sell (`engine.offline`)."""
        return f"{self.tag}:rates:{encode(merchant)}:{encode(location)}"

    def offline(self, merchant: str, location: str) -> str:
        """Hash of what is held back while a location's tills are silent (`lua/offline.lua`)."""
        return f"{self.tag}:offline:{encode(merchant)}:{encode(location)}"

    def substitutes(self, merchant: str) -> str:
        """Hash of what stands for a merchant's SKUs, in the partition of its empty location."""
        return f"{self.tag}:substitutes:{encode(merchant)}"

    def kits(self, merchant: str) -> str:
        """Hash of what a merchant's kits are made of, beside `substitutes`."""
        return f"{self.tag}:kits:{encode(merchant)}"

    def seen(self, merchant: str, operation: str) -> str:
        """Idempotency record of an operation id (see `digest`)."""
        return f"{self.tag}:seen:{encode(merchant)}:{operation}"

    def lease(self, job: str) -> str:
        """Hash of who does a background job here: owner, fence, until (see `engine.leases`)."""
        return f"{self.tag}:lease:{job}"

    def probe(self) -> list[str]:
        """Scratch keys of the boot probe: a hash, a sorted set, a string and a stream."""
        return [f"{self.tag}:probe:{kind}" for kind in ("hash", "zset", "string", "stream")]


@dataclass(frozen=True, slots=True)
class WebhookKeys:
    """The keys of one webhook endpoint, which all share a slot of their own."""

    endpoint: str

    @property
    def tag(self) -> str:
        """The hash tag; `PARTITION_KEYS` does not match it."""
        return f"{{hfw.{self.endpoint}}}"

    @property
    def state(self) -> str:
        """Hash: how deliveries went lately (see `engine.outbox`). Without it nothing is queued."""
        return f"{self.tag}:state"

    @property
    def positions(self) -> str:
        """Hash from a partition's number to the last of its sequences that was looked through."""
        return f"{self.tag}:positions"

    @property
    def outbox(self) -> str:
        """Stream of the events that are still to be delivered, in order."""
        return f"{self.tag}:outbox"

    @property
    def retries(self) -> str:
        """Hash from an outbox entry's stream id to how often it failed and when it is due."""
        return f"{self.tag}:retries"

    @property
    def dead(self) -> str:
        """Stream of the events that were given up."""
        return f"{self.tag}:dead"

    @property
    def log(self) -> str:
        """Stream of the last attempts to deliver."""
        return f"{self.tag}:log"

    def lease(self, job: str) -> str:
        """Hash of who does a background job for this endpoint, as `PartitionKeys.lease`."""
        return f"{self.tag}:lease:{job}"

    def all(self) -> list[str]:
        """Every key of the endpoint but its leases, which end by themselves."""
        return [self.state, self.positions, self.outbox, self.retries, self.dead, self.log]


def location_member(merchant: str, location: str) -> str:
    """Return the member of a partition's index of locations; see `parse_location_member`."""
    return f"{encode(merchant)}:{encode(location)}"


def parse_location_member(member: str) -> tuple[str, str] | None:
    """Return the merchant and location of a member; None where it is not one of ours."""
    parts = member.split(":")
    return (unquote(parts[0]), unquote(parts[1])) if len(parts) == 2 else None


def row_member(merchant: str, location: str, sku: str) -> str:
    """Return the member of a partition's index of split rows; see `parse_row_member`."""
    return f"{encode(merchant)}:{encode(location)}:{encode(sku)}"


def parse_row_member(member: str) -> tuple[str, str, str] | None:
    """Return the merchant, location and SKU of a member; None where it is not one of ours."""
    parts = [unquote(part) for part in member.split(":")]
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else None


def claim_member(merchant: str, buyer: str, reservation: str) -> str:
    """Return the member of a partition's index of claims; see `parse_row_member`."""
    return row_member(merchant, buyer, reservation)


class ParsedKey(NamedTuple):
    """A key of a partition: what kind it is, and what it names, decoded."""

    partition: int
    noun: str
    parts: tuple[str, ...]


def parse_key(key: str) -> ParsedKey | None:
    """Take a partition's key apart; None where it is no key of a partition."""
    match = _PARTITION_KEY.fullmatch(key)
    if match is None:
        return None
    parts = () if match[3] is None else tuple(unquote(part) for part in match[3].split(":"))
    return ParsedKey(int(match[1]), match[2], parts)
