-- The peer: the same job as one stored procedure. A reserve takes units of a row that has as many,
-- writes the reservation and the ledger entry, and is its own idempotency record.

CREATE TABLE stock (
    merchant text NOT NULL,
    location text NOT NULL,
    sku text NOT NULL,
    on_hand bigint NOT NULL CHECK (on_hand >= 0),
    reserved bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    safety_stock bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (merchant, location, sku)
) WITH (fillfactor = 50);  -- Room for heap-only updates: without it the hot row bloats its index.

CREATE TABLE reservation (
    id uuid PRIMARY KEY,
    merchant text NOT NULL,
    location text NOT NULL,
    state text NOT NULL,
    sku text NOT NULL,
    quantity bigint NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX reservation_due ON reservation (expires_at) WHERE state = 'held';

CREATE TABLE ledger (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL,
    operation text NOT NULL,
    reservation_id uuid NOT NULL,
    merchant text NOT NULL,
    location text NOT NULL,
    sku text NOT NULL,
    reserved_change bigint NOT NULL,
    reserved bigint NOT NULL,
    version bigint NOT NULL
);

CREATE FUNCTION reserve(
    the_id uuid, the_merchant text, the_location text, the_sku text, units bigint, ttl interval
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    after record;
BEGIN
    INSERT INTO reservation VALUES
        (the_id, the_merchant, the_location, 'held', the_sku, units, now() + ttl)
        ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN 'replayed';
    END IF;
    -- The row stays locked until the transaction ends, so it is taken as late as may be.
    UPDATE stock SET reserved = stock.reserved + units, version = stock.version + 1
        WHERE merchant = the_merchant AND location = the_location AND sku = the_sku
            AND on_hand - stock.reserved - safety_stock >= units
        RETURNING stock.reserved, stock.version INTO after;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'insufficient stock';
    END IF;
    INSERT INTO ledger
        (at, operation, reservation_id, merchant, location, sku, reserved_change, reserved, version)
        VALUES (now(), 'reserve', the_id, the_merchant, the_location, the_sku, units,
            after.reserved, after.version);
    RETURN 'ok';
END
$$;

INSERT INTO stock (merchant, location, sku, on_hand)
    SELECT 'bench', 'store-' || place, 'sku-' || item, 1000000000
    FROM generate_series(0, 99) AS place, generate_series(0, 99) AS item;
VACUUM ANALYZE;
