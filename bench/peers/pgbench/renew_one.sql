\set i random(1, :rows)
UPDATE agent_subscriptions SET last_seen_at = clock_timestamp() WHERE token = left(md5(:i::text), 22);
