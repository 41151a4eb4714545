-- The ledger has a schema of its own, so that it can share a database with a warehouse.

-- One row. An append holds a share lock on it, a claim updates it: no append commits after the claim that ends it.
CREATE TABLE haulage_ledger.leader (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch      bigint  NOT NULL,
    leader     text    NOT NULL,
    claimed_at bigint  NOT NULL,
    -- Tells this ledger's runs from those of another one in the same warehouse.
    mark       text    NOT NULL
);
INSERT INTO haulage_ledger.leader (epoch, leader, claimed_at, mark)
    VALUES (0, '', 0, left(replace(gen_random_uuid()::text, '-', ''), 6));

-- The head of every run's log. Times are milliseconds since the Unix epoch, by the leader's clock.
CREATE TABLE haulage_ledger.runs (
    run            text    PRIMARY KEY,
    -- The order of arrival: clocks of two leaders may disagree.
    ordinal        bigint  GENERATED ALWAYS AS IDENTITY UNIQUE,
    submission_key text    NOT NULL,
    number         bigint  NOT NULL,
    pipeline       text    NOT NULL,
    submitted_at   bigint  NOT NULL,
    last_seq       bigint  NOT NULL,
    finished_at    bigint,
    outcome        text    CHECK (outcome IN ('published', 'failed', 'cancelled')),
    UNIQUE (submission_key, number),
    CHECK ((finished_at IS NULL) = (outcome IS NULL))
);
CREATE INDEX runs_open ON haulage_ledger.runs (ordinal) WHERE finished_at IS NULL;
CREATE INDEX runs_by_pipeline ON haulage_ledger.runs (pipeline, ordinal);

-- The logs. `json`, not `jsonb`: the text stays as it was written, and `\u0000` in a failure's message is kept.
CREATE TABLE haulage_ledger.events (
    run   text   NOT NULL REFERENCES haulage_ledger.runs (run),
    seq   bigint NOT NULL CHECK (seq >= 1),
    epoch bigint NOT NULL,
    at    bigint NOT NULL,
    kind  text   NOT NULL,
    body  json   NOT NULL,
    PRIMARY KEY (run, seq)
);
