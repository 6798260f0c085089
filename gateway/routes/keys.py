"""The operations of API keys."""

from typing import Final

from engine.access import Role
from engine.outcomes import LimitExceeded
from gateway import api_keys
from gateway.operations import Operation, Success

_KEYS: Final = "/v1/keys"

OPERATIONS: Final = (
    Operation(
        name="listKeys",
        method="GET",
        path=_KEYS,
        tag="Keys",
        summary="List all API keys",
        handler=api_keys.list_all,
        role=Role.ADMIN,
        successes=(Success(200, api_keys.KeyList, "The keys"),),
    ),
    Operation(
        name="createKey",
        method="POST",
        path=_KEYS,
        tag="Keys",
        summary="Make an API key",
        handler=api_keys.create,
        request=api_keys.KeyRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(201, api_keys.KeyWithSecret, "It and its secret"),),
        problems=(LimitExceeded,),
    ),
    Operation(
        name="revokeKey",
        method="DELETE",
        path=_KEYS + "/{key}",
        tag="Keys",
        summary="Revoke an API key for good",
        handler=api_keys.revoke,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, api_keys.KeyAnswer, "The key, revoked"),),
    ),
)
