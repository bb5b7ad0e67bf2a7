-- presenced-oldest-binary: 0.1.0
--
-- What a node reads: what is new since a snapshot, what lies behind a cursor, and whether the log is
-- the one it knows. These functions write nothing but where the log went back.

-- Everything that became visible between two snapshots, each once: a transaction is in the delta
-- iff `since` does not see it and this statement does. How long it was open, and how long others
-- are, does not matter. Call it as one statement in autocommit: `SELECT * FROM presenced_delta(...)`.
--   since          the snapshot of the call before, or of pg_current_snapshot() after LISTEN
--   row_limit      a delta of more rows is not returned: then take the new snapshot and catch up by
--                  presenced_fetch() for every agent
--   payload_bytes  payloads of at most so many bytes come along; 0: none (a node fetches those of
--                  its own agents)
-- First row: agent_id null, `snapshot` for the next call, `is_whole`, `awake_for` (until when all
-- nodes are awake, from now; negative: asleep), `has_inbox`. Then a row a dispatch, by agent_id and
-- seq. expires_in may be negative: such a dispatch is not sent, but the cursor passes it. sender_*
-- are for clients that take them beside the payload.
-- 55000 on a standby, whose snapshots do not say which transactions are in progress.
-- Locks: none. Cost: 50 to 80 us when nothing is new; 3 us a row.
--
-- STABLE is what makes it right: all its parts read the caller's snapshot.
CREATE FUNCTION presenced_delta(since pg_snapshot, row_limit integer, payload_bytes integer)
RETURNS TABLE (agent_id bigint, seq bigint, epoch text, to_session text, bytes integer,
               payload json, expires_in interval, created_at timestamptz, sender_kind text,
               sender_token bigint, sender_agent bigint, sender_session text, sender_role text,
               snapshot pg_snapshot, is_whole boolean, awake_for interval, has_inbox boolean)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'a standby cannot say what is new'
            USING HINT = 'connect to the primary: target_session_attrs=read-write',
                  ERRCODE = '55000';
    END IF;
    RETURN QUERY
    WITH fresh AS MATERIALIZED (
        SELECT f.* FROM (
            SELECT d.*
            FROM dispatches d WHERE d.xid = ANY (ARRAY(SELECT pg_snapshot_xip(since)))
            UNION ALL
            SELECT d.*
            FROM dispatches d WHERE d.xid >= pg_snapshot_xmax(since)) f
        LIMIT row_limit + 1),
    whole AS MATERIALIZED (SELECT count(*) <= row_limit AS is_whole FROM fresh)
    SELECT u.* FROM (
        SELECT NULL::bigint, NULL::bigint, NULL::text, NULL::text, NULL::integer, NULL::json,
               NULL::interval, NULL::timestamptz, NULL::text, NULL::bigint, NULL::bigint,
               NULL::text, NULL::text, pg_current_snapshot(), w.is_whole,
               (SELECT k.awake_until - v_now FROM presenced_wake k
                WHERE k.awake_until <= v_now + interval '3 seconds' AND isfinite(k.awake_until)),
               EXISTS (SELECT FROM dispatch_inbox)
        FROM whole w
        UNION ALL
        SELECT f.agent_id, f.seq, f.epoch, f.to_session, f.bytes,
               CASE WHEN f.bytes <= payload_bytes THEN f.payload END,
               f.expires_at - v_now, f.created_at, f.sender_kind, f.sender_token, f.sender_agent,
               f.sender_session, f.sender_role, NULL::pg_snapshot, NULL::boolean, NULL::interval, NULL::boolean
        FROM fresh f, whole w WHERE w.is_whole) u (agent_id, seq)
    ORDER BY u.agent_id NULLS FIRST, u.seq;
END $$;

-- What lies behind the cursors of some agents; the arrays run in parallel. The answer for an agent
-- is complete from its cursor up to `complete_to`: what is not in it was trimmed, and the cursor
-- moves to complete_to. A row an agent first (seq null: epoch, top, complete_to), then its
-- dispatches by seq. complete_to < top: ask again from there. An agent that is gone has no rows.
--   row_limit   rows an agent; byte_limit: of payloads, over the whole answer, which holds one
--               dispatch at least. An agent that found no room has complete_to = its cursor.
-- payload is null where a dispatch has expired: it is passed, and not sent.
-- Call it as one statement in autocommit. Locks: none. Cost: 6 us a row, 20 us an agent.
CREATE FUNCTION presenced_fetch(
    agent_ids bigint[], cursors bigint[], row_limit integer DEFAULT 100,
    byte_limit bigint DEFAULT 1048576)
RETURNS TABLE (agent_id bigint, seq bigint, epoch text, top bigint, complete_to bigint,
               to_session text, bytes integer, payload json, expires_in interval,
               created_at timestamptz, sender_kind text, sender_token bigint, sender_agent bigint,
               sender_session text, sender_role text)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
BEGIN
    RETURN QUERY
    WITH wanted AS MATERIALIZED (
        SELECT c.ord, c.agent_id, c.behind, t.epoch, t.top
        FROM unnest(agent_ids, cursors) WITH ORDINALITY AS c (agent_id, behind, ord),
             LATERAL (SELECT s.epoch, s.top FROM agent_streams s
                      WHERE s.agent_id = c.agent_id OFFSET 0) t),
    found AS MATERIALIZED (
        SELECT w.ord, d.*, count(*) OVER (PARTITION BY w.ord) AS n,
               sum(CASE WHEN d.expires_at > v_now THEN d.bytes ELSE 0 END)
                   OVER (ORDER BY w.ord, d.seq) AS bytes_so_far,
               row_number() OVER (ORDER BY w.ord, d.seq) AS nth
        FROM wanted w, LATERAL (
            SELECT d.* FROM dispatches d
            WHERE d.agent_id = w.agent_id AND d.seq > w.behind AND d.seq <= w.top
            ORDER BY d.seq LIMIT row_limit) d),
    fitting AS MATERIALIZED (
        SELECT f.* FROM found f WHERE f.bytes_so_far <= byte_limit OR f.nth = 1),
    ends AS MATERIALIZED (
        SELECT f.ord, max(f.seq) AS last, count(*) AS got, max(f.n) AS n
        FROM fitting f GROUP BY f.ord),
    cut AS MATERIALIZED (SELECT DISTINCT f.ord FROM found f)
    SELECT u.* FROM (
        SELECT w.agent_id, NULL::bigint, w.epoch, w.top,
               CASE WHEN e.ord IS NULL AND k.ord IS NULL THEN greatest(w.top, 0)
                    WHEN e.ord IS NULL THEN w.behind
                    WHEN e.got < e.n OR e.n >= row_limit THEN e.last
                    ELSE w.top END,
               NULL::text, NULL::integer, NULL::json, NULL::interval, NULL::timestamptz,
               NULL::text, NULL::bigint, NULL::bigint, NULL::text, NULL::text
        FROM wanted w LEFT JOIN ends e ON e.ord = w.ord LEFT JOIN cut k ON k.ord = w.ord
        UNION ALL
        SELECT f.agent_id, f.seq, f.epoch, NULL::bigint, NULL::bigint, f.to_session, f.bytes,
               CASE WHEN f.expires_at > v_now THEN f.payload END, f.expires_at - v_now,
               f.created_at, f.sender_kind, f.sender_token, f.sender_agent, f.sender_session,
               f.sender_role
        FROM fitting f) u (agent_id, seq)
    ORDER BY u.agent_id, u.seq NULLS FIRST;
END $$;

-- For all agents of a node, after a new database session: those whose stream is not where the
-- node's cursor is. top > cursor: fetch. epoch differs: forget ring, cursors and marks. gone: there
-- is no stream, and no agent. A cursor above the top of its own epoch means that the log went back:
-- call presenced_begin_epochs(). Locks: none. Cost: 5 us an agent.
CREATE FUNCTION presenced_compare_streams(agent_ids bigint[], epochs text[], cursors bigint[])
RETURNS TABLE (agent_id bigint, epoch text, top bigint)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT c.agent_id, t.epoch, t.top
    FROM unnest(agent_ids, epochs, cursors) AS c (agent_id, epoch, behind)
    LEFT JOIN LATERAL (SELECT s.epoch, s.top FROM agent_streams s
                       WHERE s.agent_id = c.agent_id OFFSET 0) t ON true
    WHERE t.top IS DISTINCT FROM c.behind OR t.epoch IS DISTINCT FROM c.epoch;
END $$;

-- Begins a new epoch of streams whose log went back: commits were lost by an asynchronous fail-over
-- or a recovery to a point in time, and a seq that somebody has received will be given again. What
-- is in the log stays, with its seq. Positions above top go back to top.
--   epochs, tops  what the caller knows; a stream begins anew only if it still has that epoch and
--                 its top is below. Several nodes may ask at once: one does it. epochs null: in any
--                 case.
-- Returns the agents whose epoch is new. Locks: their streams by agent_id, their leases by token.
CREATE FUNCTION presenced_begin_epochs(agent_ids bigint[], epochs text[], tops bigint[])
RETURNS TABLE (agent_id bigint, epoch text, top bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_agents bigint[];
    v_tokens text[];
BEGIN
    v_agents := ARRAY(
        SELECT t.agent_id FROM agent_streams t
        WHERE t.agent_id = ANY (agent_ids) ORDER BY t.agent_id FOR NO KEY UPDATE);
    IF epochs IS NOT NULL THEN
        v_agents := ARRAY(
            SELECT t.agent_id FROM agent_streams t
            JOIN unnest(agent_ids, epochs, tops) AS c (agent_id, epoch, seen)
              ON c.agent_id = t.agent_id AND c.epoch = t.epoch AND c.seen > t.top
            WHERE t.agent_id = ANY (v_agents));
    END IF;
    IF cardinality(v_agents) = 0 THEN
        RETURN;
    END IF;
    UPDATE agent_streams t SET epoch = presenced_new_epoch() WHERE t.agent_id = ANY (v_agents);
    UPDATE dispatches d SET epoch = t.epoch FROM agent_streams t
    WHERE d.agent_id = ANY (v_agents) AND t.agent_id = d.agent_id;
    UPDATE received_ranges r
    SET epoch = t.epoch, started = least(r.started, t.top), received = least(r.received, t.top),
        handled = CASE WHEN r.handled IS NOT NULL THEN least(r.handled, t.top) END
    FROM agent_streams t WHERE r.agent_id = ANY (v_agents) AND t.agent_id = r.agent_id;
    UPDATE undelivered u SET epoch = t.epoch FROM agent_streams t
    WHERE u.agent_id = ANY (v_agents) AND t.agent_id = u.agent_id;
    UPDATE dispatch_replies p SET epoch = t.epoch FROM agent_streams t
    WHERE p.agent_id = ANY (v_agents) AND t.agent_id = p.agent_id;
    UPDATE session_handled h SET epoch = t.epoch, handled = least(h.handled, t.top)
    FROM agent_streams t WHERE h.agent_id = ANY (v_agents) AND t.agent_id = h.agent_id;
    v_tokens := ARRAY(SELECT s.token FROM agent_subscriptions s
                      WHERE s.agent_id = ANY (v_agents) AND s.epoch IS NOT NULL
                      ORDER BY s.token FOR NO KEY UPDATE);
    UPDATE agent_subscriptions s
    SET epoch = t.epoch, started = least(s.started, t.top),
        received = least(coalesce(s.received, s.started), t.top),
        handled = CASE WHEN s.handled IS NOT NULL THEN least(s.handled, t.top) END
    FROM agent_streams t WHERE s.token = ANY (v_tokens) AND t.agent_id = s.agent_id;
    RETURN QUERY SELECT t.agent_id, t.epoch, t.top FROM agent_streams t
                 WHERE t.agent_id = ANY (v_agents);
END $$;

-- Is this the cluster whose transaction ids stand in dispatches? A node that hears false is not
-- ready, and says: run `presenced migrate`.
CREATE FUNCTION presenced_is_own_cluster() RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
BEGIN
    RETURN coalesce((SELECT s.system_identifier = presenced_system_identifier()
                     FROM delivery_state s), false);
END $$;

-- For `presenced migrate`: when the database came to another cluster (a dump that was restored, a
-- logical replica), makes its rows this cluster's: the xid of every dispatch, the horizons, the
-- snapshot of the verdicts; and every stream begins a new epoch. Returns whether it had to. Run it
-- in a transaction of its own, while no node is ready. Cost: 20 us a dispatch that is kept.
CREATE FUNCTION presenced_adopt_cluster() RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM FROM delivery_state s FOR UPDATE;
    IF presenced_is_own_cluster() THEN
        RETURN false;
    END IF;
    LOCK TABLE agent_streams IN SHARE ROW EXCLUSIVE MODE;
    PERFORM presenced_begin_epochs(ARRAY(SELECT t.agent_id FROM agent_streams t), NULL, NULL);
    UPDATE dispatches SET xid = pg_current_xact_id();
    DELETE FROM trim_horizons;
    UPDATE delivery_state s SET system_identifier = presenced_system_identifier(),
                                judged_until = '-infinity',
                                judged_snapshot = pg_current_snapshot();
    RETURN true;
END $$;

SELECT presenced_seal('presenced_delta', 'presenced_fetch', 'presenced_compare_streams',
                      'presenced_begin_epochs', 'presenced_is_own_cluster',
                      'presenced_adopt_cluster');
