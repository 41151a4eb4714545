-- Whether the checkpoint store holds nothing of a run any more. Those at rest of which it may are looked through by age.
ALTER TABLE runs ADD COLUMN emptied INTEGER NOT NULL DEFAULT FALSE CHECK (emptied IN (TRUE, FALSE));
CREATE INDEX runs_unpruned ON runs (finished_at, ordinal) WHERE finished_at IS NOT NULL AND NOT emptied;
