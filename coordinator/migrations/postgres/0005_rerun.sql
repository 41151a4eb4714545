-- The run whose publish this one replaces, since it was run again on purpose.
ALTER TABLE haulage_ledger.runs ADD COLUMN replaces text;
UPDATE haulage_ledger.runs SET replaces = (
    SELECT first.body ->> 'replaces' FROM haulage_ledger.events first WHERE first.run = runs.run AND first.seq = 1
);
CREATE INDEX runs_by_replaced ON haulage_ledger.runs (replaces, ordinal) WHERE replaces IS NOT NULL;
