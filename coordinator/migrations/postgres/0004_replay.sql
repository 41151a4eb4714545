-- The run whose rejected rows this one reads again.
ALTER TABLE haulage_ledger.runs ADD COLUMN replays text REFERENCES haulage_ledger.runs (run);
CREATE INDEX runs_by_replayed ON haulage_ledger.runs (replays, ordinal) WHERE replays IS NOT NULL;
