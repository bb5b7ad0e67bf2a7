\set batch random(1, :batches) - 1
SELECT t.missing FROM bench_batches b, LATERAL presenced_renew(b.agent_ids, b.tokens, false,
    'pgbench', 'boot', '', NULL, NULL) t WHERE b.n = :batch;
