"""The core of Holdfast: stock, reservations and the ledger, over Redis or Valkey.

`engine.inventory.Inventory` is what the layers above call.
"""
