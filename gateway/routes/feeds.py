"""The operations of feeds: events, quarantine, policies and shortfalls."""

from typing import Final

from engine.access import Role
from engine.outcomes import IdempotencyKeyReused, LimitExceeded
from gateway import feed_bodies, feeds, shortfalls
from gateway.operations import Operation, Success
from gateway.paging import QUERY
from gateway.routes.paths import LOCATION, MERCHANT

_SOURCE: Final = LOCATION + "/feeds/{source}"
_QUARANTINE: Final = LOCATION + "/quarantine"

OPERATIONS: Final = (
    Operation(
        name="takeEvents",
        method="POST",
        path=_SOURCE + "/events",
        tag="Feeds",
        summary="Take up to 1,000 events of a till or a supplier, late or not",
        handler=feeds.take,
        request=feed_bodies.FeedRequest,
        role=Role.FEED,
        changes=True,
        successes=(Success(200, feed_bodies.FeedAnswer, "What became of each event"),),
    ),
    Operation(
        name="listFeeds",
        method="GET",
        path=LOCATION + "/feeds",
        tag="Feeds",
        summary="List a location's sources of events: state, gaps, lag",
        handler=feeds.list_sources,
        role=Role.READ,
        successes=(Success(200, feed_bodies.FeedList, "The sources"),),
    ),
    Operation(
        name="skipEvents",
        method="POST",
        path=_SOURCE + "/skip",
        tag="Feeds",
        summary="Give up on the sequence numbers that have not come",
        handler=feeds.skip,
        request=feed_bodies.SkipRequest,
        role=Role.FEED,
        changes=True,
        successes=(Success(200, feed_bodies.Decision, "What became of it"),),
        problems=(LimitExceeded,),
    ),
    Operation(
        name="listQuarantine",
        method="GET",
        path=_QUARANTINE,
        tag="Feeds",
        summary="List a location's events that were set aside",
        handler=feeds.list_quarantined,
        role=Role.READ,
        successes=(Success(200, feed_bodies.QuarantinePage, "A page"),),
        query=QUERY,
    ),
    Operation(
        name="retryEvent",
        method="POST",
        path=_QUARANTINE + "/{event}/retry",
        tag="Feeds",
        summary="Book an event that was set aside, if nothing speaks against it any more",
        handler=feeds.retry,
        role=Role.FEED,
        changes=True,
        successes=(Success(200, feed_bodies.Decision, "What became of it"),),
        problems=(LimitExceeded, IdempotencyKeyReused),
    ),
    Operation(
        name="dropEvent",
        method="POST",
        path=_QUARANTINE + "/{event}/drop",
        tag="Feeds",
        summary="Give up on an event that was set aside",
        handler=feeds.drop,
        role=Role.FEED,
        changes=True,
        successes=(Success(200, feed_bodies.Decision, "What became of it"),),
    ),
    Operation(
        name="listShortfalls",
        method="GET",
        path=LOCATION + "/shortfalls",
        tag="Feeds",
        summary="List what is promised and not there, whose it is, and the ways out",
        handler=shortfalls.list_shortfalls,
        role=Role.READ,
        successes=(Success(200, shortfalls.ShortfallList, "The shortfalls"),),
    ),
    *(
        Operation(
            name=f"{verb}{name}FeedPolicy",
            method=method,
            path=path + "/feed-policy",
            tag="Feeds",
            summary=f"{verb.title()} what is decided for a {name.lower()}'s feeds",
            handler=feeds.write_policy if method == "PUT" else feeds.read_policy,
            request=feed_bodies.FeedPolicy if method == "PUT" else None,
            role=Role.ADMIN if method == "PUT" else Role.READ,
            changes=method == "PUT",
            successes=(Success(200, feed_bodies.FeedPolicy, "What is decided there"),),
            problems=(LimitExceeded,) if method == "PUT" else (),
        )
        for name, path in (("Merchant", MERCHANT), ("Location", LOCATION))
        for verb, method in (("read", "GET"), ("write", "PUT"))
    ),
)
