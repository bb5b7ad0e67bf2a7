-- A live row for every agent, and batches of their tokens, each in the order of its tokens.
INSERT INTO agent_subscriptions (agent_id, token)
SELECT i, left(md5(i::text), 22) FROM generate_series(1, :rows) i ORDER BY random();
UPDATE agents SET routing_active = true;
TRUNCATE bench_batches;
INSERT INTO bench_batches
SELECT (ord - 1) / :batch, '{}', array_agg(agent_id ORDER BY token),
       array_agg(token ORDER BY token), '{}', '{}'
FROM (SELECT agent_id, token, row_number() OVER (ORDER BY random()) AS ord
      FROM agent_subscriptions) r GROUP BY 1;
VACUUM ANALYZE;
