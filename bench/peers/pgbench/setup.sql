-- What pgbench is to send, made beforehand so that it is not measured: one row a batch.
CREATE TABLE bench_batches (
    n         integer PRIMARY KEY,
    kinds     text[] NOT NULL,
    agent_ids bigint[] NOT NULL,
    tokens    text[] NOT NULL,
    sessions  text[] NOT NULL,
    owners    bigint[] NOT NULL
);

INSERT INTO agents (id, owner_id) SELECT i, i FROM generate_series(1, :rows) i;

-- Tokens in no order, as those of presenced are. A session each, so that every agent flips.
INSERT INTO bench_batches
SELECT (i - 1) / :batch, array_agg('acquire'::text), array_agg(i),
       array_agg(left(md5(i::text), 22)), array_agg(NULL::text), array_agg(i)
FROM generate_series(1, :rows) i GROUP BY 1;

VACUUM ANALYZE;
