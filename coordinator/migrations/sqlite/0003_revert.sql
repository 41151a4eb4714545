-- A published run may be reverted later, and is over again then. SQLite changes no CHECK, so the table is made anew. The
-- events point at it: they are held against it when this commits, and by then every run is there again.
PRAGMA defer_foreign_keys = ON;
CREATE TEMPORARY TABLE runs_before AS SELECT * FROM runs;
DROP TABLE runs;
CREATE TABLE runs (
    -- The order of arrival: clocks of two leaders may disagree.
    ordinal        INTEGER PRIMARY KEY AUTOINCREMENT,
    run            TEXT    NOT NULL UNIQUE,
    submission_key TEXT    NOT NULL,
    number         INTEGER NOT NULL,
    pipeline       TEXT    NOT NULL,
    submitted_at   INTEGER NOT NULL,
    last_seq       INTEGER NOT NULL,
    finished_at    INTEGER,
    outcome        TEXT    CHECK (outcome IN ('published', 'failed', 'cancelled', 'reverted')),
    UNIQUE (submission_key, number),
    CHECK ((finished_at IS NULL) = (outcome IS NULL))
) STRICT;
INSERT INTO runs (ordinal, run, submission_key, number, pipeline, submitted_at, last_seq, finished_at, outcome)
    SELECT ordinal, run, submission_key, number, pipeline, submitted_at, last_seq, finished_at, outcome FROM runs_before;
DROP TABLE runs_before;
CREATE INDEX runs_open ON runs (ordinal) WHERE finished_at IS NULL;
CREATE INDEX runs_by_pipeline ON runs (pipeline, ordinal);
