-- A published run may be reverted later, and is over again then.
ALTER TABLE haulage_ledger.runs DROP CONSTRAINT runs_outcome_check;
ALTER TABLE haulage_ledger.runs ADD CONSTRAINT runs_outcome_check
    CHECK (outcome IN ('published', 'failed', 'cancelled', 'reverted'));
