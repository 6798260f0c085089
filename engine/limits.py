"""Every bound that the engine keeps, with its reason.

A bound that the scripts check too is handed to them in each call (see `script_limits`) or stands in
`lua/lib/group.lua` under the same name, which a test compares.
"""

from typing import Final

MAX_ID_BYTES: Final = 200
"""Of a merchant, location, SKU or order reference, in UTF-8: three of them make a key, and a key
longer than about 1 kB costs every command that names it."""

MAX_KEY_CHARACTERS: Final = 255
"""Of an idempotency key, as in the IETF draft's examples and at Stripe."""

MAX_QUANTITY: Final = 10**9
"""Units in one line or movement: more is a typing error."""

MAX_TOTAL: Final = 10**12
"""Units a row may have: far below 2^53, up to which Lua counts exactly."""

MAX_EXACT: Final = 2**53 - 1
"""Of versions and times: the largest integer that Lua does not confuse with its neighbour."""

MAX_LINES: Final = 200
"""Lines of one reservation: one script call applies them all, and must not hold the store for more
than a few milliseconds."""

MAX_BATCH_ROWS: Final = 500
"""Rows in one availability question."""

MAX_BATCH_MOVEMENTS: Final = 1000
"""Movements in one call."""

MAX_BATCH_EVENTS: Final = 1000
"""Events of one source in one call."""

MAX_PARTS: Final = 16
"""Partitions that one split row is spread over: a look at the whole row asks them all."""

DEFAULT_LATE_MS: Final = 72 * 3_600_000
"""How late an event may be: a till that was cut off on Friday evening is back on Monday."""

MAX_DEFINITIONS: Final = 10_000
"""SKUs of one merchant with substitutes, and as many kits: all of them are read and checked
together when one changes, which takes some 50 ms then."""

MAX_BATCH_DEFINITIONS: Final = 1_000
"""SKUs whose substitutes are said in one call, or kits."""

MAX_ALTERNATIVES: Final = 8
"""SKUs that may stand for one: each is a row that a reserve may have to read and weigh."""

MAX_COMPONENTS: Final = 20
"""SKUs that a kit is made of, for the same reason."""

MAX_COMPONENT_UNITS: Final = 1_000
"""Units of one component in a kit."""

MAX_RATIO: Final = 1_000
"""Either number of a ratio of substitution: a pallet for pieces. More is a typing error."""

MAX_RATIO_STEPS: Final = 12
"""The smaller number of a ratio, reduced: 12 of these for 25 of those is no trade that a shopper
follows, and each step costs the search for the fewest extra units a pass."""

MAX_MIXED_UNITS: Final = 1_000
"""Units of a reservation that several SKUs may serve together: the search for the fewest extra ones
looks at each number up to that, and some 10 ms is the longest that it may take."""

MAX_WISH_ROWS: Final = 400
"""Rows that one reservation may have to look at, those that may stand for others included: twice as
many as it may have lines."""

MAX_POLICIES: Final = 100_000
"""Merchants and locations with a policy of their own, at some 150 bytes each."""

MAX_LOCATION_SOURCES: Final = 1_000
"""Sources of one location that are listed: tills and suppliers, not orders."""

MAX_PAGE: Final = 500
"""Rows or reservations in one page of a listing."""

DEFAULT_PAGE: Final = 100

DEFAULT_CHANNEL: Final = "online"
"""Through which units are promised where nobody says otherwise."""

MAX_NAME_BYTES: Final = 128
"""Of a channel or a buyer, in UTF-8: they are names, not texts."""

MAX_CHANNELS: Final = 50
"""Channels of a row that have a pool: each reserve of it looks through all."""

MAX_BUYER_UNITS: Final = 1_000
"""That a cap allows a buyer: each of their reservations of the row is looked through."""

MAX_BUYER_WINDOW_MS: Final = 366 * 24 * 3_600_000
"""How long a cap may remember what a buyer got."""

CLAIM_MS: Final = 60_000
"""How long a claim may wait for the promise that it is for: a call of the store is done, or was
given up, long before. So long the units of a caller that died are kept from their buyer."""

CLAIM_LOOK_MS: Final = 10 * 60_000
"""How long after a reservation ended its units may be kept from their buyer, where whoever ended it
died before it could say so: what became of it is looked at as often."""

MAX_REREADS: Final = 3
"""How often a reservation's lines are read anew before what was to be done with it is given up."""

MIN_TTL_MS: Final = 1_000
MAX_TTL_MS: Final = 24 * 3_600_000
"""A hold is for the time of a checkout; a placed order is confirmed and has no TTL."""

DEFAULT_TTL_MS: Final = 15 * 60_000

MAX_HOLD_MS: Final = 7 * 24 * 3_600_000
"""How long a hold may live in all, however often it is extended."""

RETENTION_MS: Final = 24 * 3_600_000
"""How long an ended reservation and an idempotency record stay, so that a late retry still finds
its answer. Stripe keeps its keys as long."""

FAILED_ORDER_RETENTION_MS: Final = 10 * 60_000
"""How long an order that could not be held stays: a crowd at an empty shelf leaves many."""

MAX_ORDER_PARTS: Final = 50
"""Locations that one order may be spread over, replacements included: each is a reservation."""

MAX_ORDER_PLANS: Final = 5
"""Plans that placing an order tries, each with what the refusal of the one before taught."""

MAX_ORDER_DECLINES: Final = 1_000
"""Declines that one order keeps, those under another key that find theirs done included."""

MAX_SOURCING_LOCATIONS: Final = 200
"""Locations that one order is sourced from: a row a line and location is read for it."""

RECENT_MS: Final = 7 * 24 * 3_600_000
"""How long a row remembers when its units came and went: the longest that an event may be late."""

FEED_RETENTION_MS: Final = 8 * 24 * 3_600_000
"""How long an event is known by its id: a day more than the longest that it may be late, so that
one which is forgotten is too late to be booked again."""

MAX_AHEAD_MS: Final = 5 * 60_000
"""How far ahead of the store's clock an event may say that it happened: tills' clocks are off by
seconds or a few minutes; more is a wrong date."""

MAX_FILLED: Final = 64
"""Reservations that one command fills: as many keys and operations come of it."""

MAX_FILL_ROUNDS: Final = 100
"""Commands that one who books units makes to fill backorders; the background process goes on."""

MAX_REVIEWED: Final = 128
"""Reservations of which one command puts on record whether they are late."""

MAX_LATE_TOLD: Final = 100
"""Promises whose day cannot be kept that one answer names; it counts the others."""

MAX_SUPPLIES: Final = 50
"""Supplies that a row expects at once. Each operation on it tells of all, at some 30 bytes."""

MAX_SUPPLY_DAYS: Final = 100
"""Days that a row knows of: those of its supplies, and those by which units were promised."""

MAX_GROUP_COMMANDS: Final = 128
"""Commands in one script call: at some 20 µs of server time each (`python -m bench --only cost`
measures it), one call holds the store for about 3 ms."""

MAX_GROUP_KEYS: Final = 512
"""Keys declared in one script call, for the same reason: carts of many lines make small groups. A
line costs about as much as a hold of its own, and a group of carts of one line has 384."""

MAX_QUEUED_COMMANDS: Final = 2_000
"""Commands of one partition waiting in one process; beyond it a caller is told to come back, at
once. A process serves some thousands a second, so whoever waits behind as many has waited longer
than a checkout should."""

MAX_QUEUED_OF_A_MERCHANT: Final = 1_000
"""Of these, by one merchant: the rest is for the others of the partition."""

MAX_QUEUED_READS: Final = 20_000
"""Reads waiting in one process: a batch of 500 rows is as many, and the store takes hundreds in one
round trip."""


def script_limits() -> dict[str, int]:
    """Return the limits that travel with every script call, all in milliseconds."""
    return {
        "min_ttl_ms": MIN_TTL_MS,
        "max_ttl_ms": MAX_TTL_MS,
        "max_hold_ms": MAX_HOLD_MS,
        "claim_ms": CLAIM_MS,
        "claim_look_ms": CLAIM_LOOK_MS,
        "retention_ms": RETENTION_MS,
        "recent_ms": RECENT_MS,
        "feed_retention_ms": FEED_RETENTION_MS,
        "ahead_ms": MAX_AHEAD_MS,
    }
