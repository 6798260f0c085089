"""Who calls, and whether they may: bearer keys, roles and merchants."""

from engine.access import ApiKey, Role
from gateway.bearer import bearer
from gateway.problems import Forbidden, NotFound, Unauthenticated
from gateway.service import Service


async def identify(service: Service, authorization: bytes | None) -> ApiKey:
    """Return the caller's key. Raises Unauthenticated, StoreUnavailable."""
    secret = bearer(authorization)
    key = None if secret is None else await service.authenticate(secret)
    if key is None:
        raise Unauthenticated
    return key


def permit(key: ApiKey, *, needed: Role, merchant: str) -> None:
    """Check that the key may do what needs the role `needed`, for this merchant.

    Another merchant's path looks to them as one that does not exist, whatever their role. Raises
    NotFound, Forbidden.
    """
    if key.merchant is not None and key.merchant != merchant:
        raise NotFound
    if not key.role.allows(needed):
        raise Forbidden(needed=needed, role=key.role)
