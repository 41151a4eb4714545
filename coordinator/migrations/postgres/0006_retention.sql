-- Whether the checkpoint store holds nothing of a run any more. Those at rest of which it may are looked through by age.
ALTER TABLE haulage_ledger.runs ADD COLUMN emptied boolean NOT NULL DEFAULT false;
CREATE INDEX runs_unpruned ON haulage_ledger.runs (finished_at, ordinal) WHERE finished_at IS NOT NULL AND NOT emptied;
