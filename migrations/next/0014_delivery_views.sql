-- presenced-oldest-binary: 0.1.0
--
-- What apps and operators read about delivery. A view reads its tables with its owner's rights, and
-- calls functions with its reader's: a reader needs SELECT on the view, and EXECUTE on
-- presenced_live_cutoff and presenced_live_vouched.

-- Who received a dispatch: a row a dispatch and range that covers it.
--   live         the lease is live; false: it ended, and this is what it left
--   received_at  when the client was last known to have received it: not earlier than the pong
--   handled      the session said so
CREATE VIEW dispatch_receipts AS
    SELECT d.agent_id, d.seq, c.session_id, c.token, c.node, c.live, c.received_at,
           coalesce(greatest(c.handled, h.handled) >= d.seq, false) AS handled
    FROM dispatches d
    CROSS JOIN LATERAL (
        SELECT s.session_id, s.token, s.node, s.handled, s.last_seen_at AS received_at,
               s.last_seen_at > (SELECT presenced_live_cutoff(now()))
               OR s.token = ANY ((SELECT presenced_live_vouched(now()))::text[]) AS live
        FROM agent_subscriptions s
        WHERE s.agent_id = d.agent_id AND s.epoch = d.epoch
          AND s.started < d.seq AND s.received >= d.seq
        UNION ALL
        SELECT r.session_id, r.token, r.node, r.handled, r.ended_at, false
        FROM received_ranges r
        WHERE r.agent_id = d.agent_id AND r.epoch = d.epoch
          AND r.started < d.seq AND r.received >= d.seq) c
    LEFT JOIN session_handled h
           ON h.agent_id = d.agent_id AND h.session_id = c.session_id AND h.epoch = d.epoch
    WHERE d.to_session IS NULL OR c.session_id = d.to_session;

-- A row a dispatch that is kept. state: 'waiting', 'received' by somebody it was for, 'undelivered'
-- (the verdict). received_by, handled_by: sessions; without a session_id each lease is one.
CREATE VIEW dispatch_status AS
    SELECT d.agent_id, d.seq, d.key, d.created_at, d.expires_at, r.received_by, r.handled_by,
           CASE WHEN u.seq IS NOT NULL THEN 'undelivered'
                WHEN r.received_by > 0 THEN 'received'
                ELSE 'waiting' END AS state,
           d.to_session, d.bytes, d.sender_kind, d.sender_token, d.sender_agent, d.sender_session,
           d.sender_role
    FROM dispatches d
    CROSS JOIN LATERAL (
        SELECT count(DISTINCT coalesce('s' || x.session_id, 't' || x.token)) AS received_by,
               count(DISTINCT coalesce('s' || x.session_id, 't' || x.token))
                   FILTER (WHERE x.handled) AS handled_by
        FROM dispatch_receipts x WHERE x.agent_id = d.agent_id AND x.seq = d.seq) r
    LEFT JOIN undelivered u
           ON u.agent_id = d.agent_id AND u.epoch = d.epoch AND u.seq = d.seq;

-- Where sessions are: a row a live lease and a row a name or lease that ended.
--   behind       how many newer seq the stream has
--   lost_before  its range begins here, and what came before it since it was last there was
--                trimmed, expired or skipped; null: it has everything in one piece
CREATE VIEW session_positions AS
    SELECT p.agent_id, p.session_id, p.token, p.live, p.started, p.received,
           t.top - p.received AS behind,
           CASE WHEN EXISTS (SELECT FROM received_ranges r
                             WHERE r.agent_id = p.agent_id AND r.session_id = p.session_id
                               AND r.epoch = t.epoch AND r.received < p.started)
                 AND NOT EXISTS (SELECT FROM received_ranges r
                                 WHERE r.agent_id = p.agent_id AND r.session_id = p.session_id
                                   AND r.epoch = t.epoch AND r.started < p.started
                                   AND r.received >= p.started)
                THEN p.started END AS lost_before,
           p.handled, p.shared, p.ended_at
    FROM agent_streams t
    CROSS JOIN LATERAL (
        SELECT s.agent_id, s.session_id, s.token, s.shared, NULL::timestamptz AS ended_at,
               s.last_seen_at > (SELECT presenced_live_cutoff(now()))
               OR s.token = ANY ((SELECT presenced_live_vouched(now()))::text[]) AS live,
               CASE WHEN s.epoch = t.epoch THEN s.started ELSE 0 END AS started,
               CASE WHEN s.epoch = t.epoch THEN coalesce(s.received, s.started) ELSE 0 END
                   AS received,
               CASE WHEN s.epoch = t.epoch THEN s.handled END AS handled
        FROM agent_subscriptions s WHERE s.agent_id = t.agent_id AND s.started IS NOT NULL
        UNION ALL
        (SELECT DISTINCT ON (r.session_id, r.token)
                r.agent_id, r.session_id, r.token, r.shared, r.ended_at, false, r.started,
                r.received, r.handled
         FROM received_ranges r WHERE r.agent_id = t.agent_id AND r.epoch = t.epoch
         ORDER BY r.session_id, r.token, r.received DESC, r.ended_at DESC)) p;

-- Verdicts, kept for 90 days.
CREATE VIEW undelivered_dispatches AS
    SELECT u.agent_id, u.seq, u.key, u.to_session, u.created_at, u.expires_at, u.judged_at
    FROM undelivered u JOIN agent_streams t ON t.agent_id = u.agent_id AND t.epoch = u.epoch;

-- For requests that wait: how far some dispatches are, all in one query; arrays in parallel. It says
-- what is recorded: a client may have received more. replies: answers so far.
-- Locks: none. Cost: 40 us a dispatch.
CREATE FUNCTION presenced_progress(agent_ids bigint[], seqs bigint[])
RETURNS TABLE (ord integer, state text, received_by bigint, handled_by bigint, replies bigint)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT o.ord::integer, s.state, s.received_by, s.handled_by,
           (SELECT count(*) FROM dispatch_replies r JOIN agent_streams t
                   ON t.agent_id = r.agent_id AND t.epoch = r.epoch
            WHERE r.agent_id = o.agent_id AND r.seq = o.seq)
    FROM unnest(agent_ids, seqs) WITH ORDINALITY AS o (agent_id, seq, ord),
         LATERAL (SELECT d.state, d.received_by, d.handled_by FROM dispatch_status d
                  WHERE d.agent_id = o.agent_id AND d.seq = o.seq OFFSET 0) s
    ORDER BY o.ord;
END $$;

SELECT presenced_seal('presenced_progress');
