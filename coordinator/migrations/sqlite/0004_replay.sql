-- The run whose rejected rows this one reads again.
ALTER TABLE runs ADD COLUMN replays TEXT REFERENCES runs (run);
CREATE INDEX runs_by_replayed ON runs (replays, ordinal) WHERE replays IS NOT NULL;
