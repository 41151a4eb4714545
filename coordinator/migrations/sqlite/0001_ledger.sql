-- One row. Appends and claims both hold SQLite's write lock: no append commits after the claim that ends it.
CREATE TABLE leader (
    only_row   INTEGER PRIMARY KEY DEFAULT 1 CHECK (only_row = 1),
    epoch      INTEGER NOT NULL,
    leader     TEXT    NOT NULL,
    claimed_at INTEGER NOT NULL,
    -- Tells this ledger's runs from those of another one in the same warehouse.
    mark       TEXT    NOT NULL
) STRICT;
INSERT INTO leader (epoch, leader, claimed_at, mark) VALUES (0, '', 0, lower(hex(randomblob(3))));

-- The head of every run's log. Times are milliseconds since the Unix epoch, by the leader's clock.
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
    outcome        TEXT    CHECK (outcome IN ('published', 'failed', 'cancelled')),
    UNIQUE (submission_key, number),
    CHECK ((finished_at IS NULL) = (outcome IS NULL))
) STRICT;
CREATE INDEX runs_open ON runs (ordinal) WHERE finished_at IS NULL;
CREATE INDEX runs_by_pipeline ON runs (pipeline, ordinal);

-- The logs.
CREATE TABLE events (
    run   TEXT    NOT NULL REFERENCES runs (run),
    seq   INTEGER NOT NULL CHECK (seq >= 1),
    epoch INTEGER NOT NULL,
    at    INTEGER NOT NULL,
    kind  TEXT    NOT NULL,
    body  TEXT    NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;
