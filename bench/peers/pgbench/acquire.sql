\set batch :n * :clients + :client_id
\set n :n + 1
SELECT t.flips FROM bench_batches b, LATERAL presenced_transition(b.kinds, b.agent_ids, b.tokens,
    b.sessions, b.owners, 'pgbench', now() + interval '1 minute', false) t WHERE b.n = :batch;
