-- A leader leads while its lease runs, by this database's clock and nobody else's. NULL: nobody holds one.
ALTER TABLE haulage_ledger.leader
    ADD COLUMN lease_until timestamptz,
    -- Where nodes and clients reach the leader.
    ADD COLUMN address     text NOT NULL DEFAULT '';
