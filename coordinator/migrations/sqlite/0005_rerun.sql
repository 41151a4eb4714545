-- The run whose publish this one replaces, since it was run again on purpose.
ALTER TABLE runs ADD COLUMN replaces TEXT;
UPDATE runs SET replaces = (
    SELECT json_extract(first.body, '$.replaces') FROM events first WHERE first.run = runs.run AND first.seq = 1
);
CREATE INDEX runs_by_replaced ON runs (replaces, ordinal) WHERE replaces IS NOT NULL;
