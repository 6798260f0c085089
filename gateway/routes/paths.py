"""Beginnings of paths that several tables share."""

from typing import Final

MERCHANT: Final = "/v1/merchants/{merchant}"
LOCATION: Final = MERCHANT + "/locations/{location}"
ROW: Final = LOCATION + "/stock/{sku}"
