-- presenced-oldest-binary: 0.1.0
--
-- Where a session starts, what it has received, and where it goes on when it comes back. These
-- functions are those of presence with positions: presenced_transition() and presenced_renew() keep
-- what they are, for binaries that do not deliver.

-- ---------------------------------------------------------------------------------------------
-- Every lease that ends leaves its position
-- ---------------------------------------------------------------------------------------------

-- Whoever deletes the rows: a release, a reap, an older binary, a hand. Once the schema has
-- dispatched, a lease with a session_id leaves a range even if it is empty: position 0 counts, or
-- the first dispatch of an agent would be lost to a session that broke before it. It inserts, and
-- waits for nobody.
CREATE FUNCTION presenced_keep_positions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_now timestamptz;
BEGIN
    IF NOT EXISTS (SELECT FROM delivery_began) THEN
        RETURN NULL;
    END IF;
    v_now := clock_timestamp();
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO received_ranges (agent_id, epoch, session_id, token, node, started, received,
                                     handled, floor, shared, created_at, heard_at, ended_at)
        SELECT g.agent_id, t.epoch, g.session_id, g.token, g.node,
               CASE WHEN g.epoch = t.epoch THEN g.started ELSE 0 END,
               CASE WHEN g.epoch = t.epoch THEN coalesce(g.received, g.started) ELSE 0 END,
               CASE WHEN g.epoch = t.epoch THEN g.handled END,
               CASE WHEN g.epoch = t.epoch THEN g.floor END,
               g.shared, g.created_at, g.heard_at, v_now
        FROM agent_subscriptions g JOIN agent_streams t ON t.agent_id = g.agent_id
        WHERE g.started IS NOT NULL
          AND (g.session_id IS NOT NULL OR (g.epoch = t.epoch AND g.received > g.started));
        RETURN NULL;
    END IF;
    INSERT INTO received_ranges (agent_id, epoch, session_id, token, node, started, received,
                                 handled, floor, shared, created_at, heard_at, ended_at)
    SELECT g.agent_id, t.epoch, g.session_id, g.token, g.node,
           CASE WHEN g.epoch = t.epoch THEN g.started ELSE 0 END,
           CASE WHEN g.epoch = t.epoch THEN coalesce(g.received, g.started) ELSE 0 END,
           CASE WHEN g.epoch = t.epoch THEN g.handled END,
           CASE WHEN g.epoch = t.epoch THEN g.floor END,
           g.shared, g.created_at, g.heard_at, v_now
    FROM gone g,
         LATERAL (SELECT s.epoch FROM agent_streams s WHERE s.agent_id = g.agent_id OFFSET 0) t
    WHERE g.started IS NOT NULL
      AND (g.session_id IS NOT NULL OR (g.epoch = t.epoch AND g.received > g.started));
    RETURN NULL;
END $$;
CREATE TRIGGER agent_subscriptions_positions AFTER DELETE ON agent_subscriptions
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    EXECUTE FUNCTION presenced_keep_positions();
CREATE TRIGGER agent_subscriptions_positions_truncated BEFORE TRUNCATE ON agent_subscriptions
    FOR EACH STATEMENT
    EXECUTE FUNCTION presenced_keep_positions();

-- Adds closed ranges: those that a jump has closed, and receipts whose lease has no row any more. A
-- range that is recorded already is not recorded twice. Ranges of another epoch, or above the top,
-- count for nothing. Arrays in parallel. Returns how many were added. Locks: none that anybody waits
-- for. Cost: 10 us a range.
CREATE FUNCTION presenced_add_ranges(
    agent_ids bigint[], tokens text[], session_ids text[], epochs text[], starteds bigint[],
    receiveds bigint[], handleds bigint[], node_name text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_now   timestamptz := clock_timestamp();
    v_added bigint;
BEGIN
    INSERT INTO received_ranges (agent_id, epoch, session_id, token, node, started, received,
                                 handled, floor, shared, created_at, heard_at, ended_at)
    SELECT o.agent_id, o.epoch, o.session_id, o.token, node_name, o.started, o.received,
           CASE WHEN o.handled IS NOT NULL THEN least(o.handled, o.received) END, l.floor, coalesce(l.shared, false),
           coalesce(l.created_at, v_now), coalesce(l.heard_at, v_now), v_now
    FROM unnest(agent_ids, tokens, session_ids, epochs, starteds, receiveds, handleds)
         AS o (agent_id, token, session_id, epoch, started, received, handled)
    CROSS JOIN LATERAL (SELECT s.epoch, s.top FROM agent_streams s
                        WHERE s.agent_id = o.agent_id OFFSET 0) t
    LEFT JOIN LATERAL (
        SELECT r.floor, r.shared, r.created_at, r.heard_at FROM received_ranges r
        WHERE r.agent_id = o.agent_id AND r.session_id IS NOT DISTINCT FROM o.session_id
          AND r.token = o.token
        ORDER BY r.ended_at DESC LIMIT 1) l ON true
    WHERE o.epoch = t.epoch AND o.received > o.started AND o.received <= t.top
      AND NOT EXISTS (
          SELECT FROM received_ranges r
          WHERE r.agent_id = o.agent_id AND r.session_id IS NOT DISTINCT FROM o.session_id
            AND r.token = o.token AND r.epoch = o.epoch
            AND r.started <= o.started AND r.received >= o.received
            AND (o.handled IS NULL OR r.handled >= o.handled));
    GET DIAGNOSTICS v_added = ROW_COUNT;
    RETURN v_added;
END $$;

-- ---------------------------------------------------------------------------------------------
-- Where a session starts
-- ---------------------------------------------------------------------------------------------

-- The floor of agents: the highest seq at and below which every unaddressed dispatch is covered by
-- somebody's range, or has expired, or is trimmed. Cost: a look at all ranges of the agent, and a
-- look-up for each gap between them.
--
-- This function and the next are written so that the planner puts them into the query that calls
-- them: no SET, one SELECT.
CREATE FUNCTION presenced_floors(agent_ids bigint[], at timestamptz)
RETURNS TABLE (agent_id bigint, floor bigint)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT t.agent_id, coalesce(w.seq - 1, t.top)
    FROM (SELECT DISTINCT a.id FROM unnest(agent_ids) AS a (id)) o
    CROSS JOIN LATERAL (SELECT s.agent_id, s.epoch, s.top FROM agent_streams s
                        WHERE s.agent_id = o.id OFFSET 0) t
    CROSS JOIN LATERAL (
        SELECT int8multirange(int8range(0, NULL, '()'))
               - coalesce(range_agg(int8range(c.started, c.received, '(]')), '{}') AS rest
        FROM (SELECT s.started, s.received FROM agent_subscriptions s
              WHERE s.agent_id = t.agent_id AND s.epoch = t.epoch AND s.received > s.started
              UNION ALL
              SELECT r.started, r.received FROM received_ranges r
              WHERE r.agent_id = t.agent_id AND r.epoch = t.epoch
                AND r.received > r.started) c) m
    LEFT JOIN LATERAL (
        SELECT d.seq
        FROM unnest(m.rest) AS g (gap),
             LATERAL (SELECT f.seq FROM dispatches f
                      WHERE f.agent_id = t.agent_id AND f.seq >= lower(g.gap)
                        AND f.seq < coalesce(upper(g.gap), 9223372036854775807)
                        AND f.to_session IS NULL AND f.expires_at > at
                      ORDER BY f.seq LIMIT 1) d
        ORDER BY d.seq LIMIT 1) w ON true;
END;

-- What is remembered of one session_id of an agent.
--   known     it had a lease in this epoch that is live, or ended no longer than `keep` ago
--   position  where it goes on: the highest end of a range. If the name is shared, the lowest among
--             its leases: each process goes on behind itself, and may get the other's again.
--   handled   the highest that it said it handled; first_started: where its earliest range began
--   floor     at or below it only what is addressed to it is for it
-- not_made_at: leases that do not count: those that are being made, at this moment.
--
-- A name is shared iff two of its leases were each heard more than 2 s after the later one was made.
-- A predecessor whose client is gone, and nobody has noticed yet, is not heard any more.
CREATE FUNCTION presenced_remembered(
    agent bigint, of_epoch text, session text, not_made_at timestamptz,
    remembered_from timestamptz)
RETURNS TABLE (known boolean, shared boolean, "position" bigint, handled bigint,
               first_started bigint, floor bigint)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT count(*) > 0, coalesce(bool_or(j.is_shared), false),
           CASE WHEN bool_or(j.is_shared) THEN min(j.received) ELSE max(j.received) END,
           greatest(max(j.handled), (
               SELECT h.handled FROM session_handled h
               WHERE h.agent_id = agent AND h.session_id = session AND h.epoch = of_epoch)),
           min(j.started),
           CASE WHEN NOT bool_or(j.is_shared) THEN max(j.floor) END
    FROM (
        SELECT l.received, l.handled, l.started, l.floor,
               l.marked OR coalesce(
                   l.heard_at > l.created_at + interval '2 seconds'
                   AND max(l.heard_at) OVER (ORDER BY l.created_at, l.token
                                             ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
                       > l.created_at + interval '2 seconds', false) AS is_shared
        FROM (
            SELECT r.token, max(r.received) AS received, min(r.started) AS started,
                   max(r.handled) AS handled, max(r.floor) AS floor, bool_or(r.shared) AS marked,
                   min(r.created_at) AS created_at, max(r.heard_at) AS heard_at
            FROM (
                SELECT s.token, s.created_at, s.heard_at, s.shared,
                       CASE WHEN s.epoch = of_epoch THEN coalesce(s.received, s.started)
                            ELSE 0 END AS received,
                       CASE WHEN s.epoch = of_epoch THEN s.started ELSE 0 END AS started,
                       CASE WHEN s.epoch = of_epoch THEN s.handled END AS handled,
                       CASE WHEN s.epoch = of_epoch THEN s.floor END AS floor
                FROM agent_subscriptions s
                WHERE s.agent_id = agent AND s.session_id = session AND s.started IS NOT NULL
                  AND s.created_at IS DISTINCT FROM not_made_at
                UNION ALL
                SELECT e.token, e.created_at, e.heard_at, e.shared, e.received, e.started,
                       e.handled, e.floor
                FROM received_ranges e
                WHERE e.agent_id = agent AND e.session_id = session AND e.epoch = of_epoch
                  AND e.ended_at > remembered_from) r
            GROUP BY r.token) l) j;
END;

-- presenced_transition() with positions: same parameters and outcomes, and these:
--   wishes   acquire: where the client asked to start. Null; {"from":"handled"};
--            {"epoch":"...","offset":n} (history of the extended protocol); {"since":unix seconds}
--   epochs, starteds, receiveds, handleds
--            release: the open range of the lease as the node knows it, of that epoch. It is recorded
--            also if the lease is gone already. A release gives its session_id, too.
-- For each acquire: stream_epochs, tops; starts: the cursor to start behind; floors: at or below it
-- only what is addressed to the session is sent; histories: 'confirmed', 'rejected' or null.
-- A retried acquire gets what it got the first time.
--
-- Locks and errors: as presenced_transition(). It locks no stream. Cost, beside the transition: one
-- look-up a subscribe of an agent without dispatches; else some 30 us, and one floor an agent.
CREATE FUNCTION presenced_transition_positions(
    kinds text[], agent_ids bigint[], tokens text[], session_ids text[], owner_ids bigint[],
    node_name text, not_after timestamptz, waits boolean, wishes json[],
    epochs text[], starteds bigint[], receiveds bigint[], handleds bigint[],
    OUT at timestamptz, OUT outcomes text[], OUT flips text[], OUT reaped bigint,
    OUT stream_epochs text[], OUT tops bigint[], OUT starts bigint[], OUT floors bigint[],
    OUT histories text[])
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_made      timestamptz;
    v_keep      interval;
    v_new       text[];
    v_ns        bigint[];
    v_tokens    text[];
    v_epochs    text[];
    v_starts    bigint[];
    v_floors    bigint[];
    v_histories text[];
    v_lost      bigint[];
    v_ignored   text;
BEGIN
    -- Step 1: the transition. Rows that it makes have started = 0.
    v_ignored := set_config('presenced.starts', '0', true);
    SELECT t.at, t.outcomes, t.flips, t.reaped
    FROM presenced_transition(kinds, agent_ids, tokens, session_ids, owner_ids, node_name,
                              not_after, waits) t
    INTO at, outcomes, flips, reaped;
    v_ignored := set_config('presenced.starts', '', true);
    v_made := at;

    -- Step 2: what the node knows of the leases that ended, and has not written yet.
    v_lost := ARRAY(SELECT o.position
                    FROM unnest(outcomes, epochs) WITH ORDINALITY AS o (outcome, epoch, position)
                    WHERE o.outcome IN ('released', 'gone') AND o.epoch IS NOT NULL);
    IF cardinality(v_lost) > 0 THEN
        PERFORM presenced_add_ranges(
            ARRAY(SELECT agent_ids[l.n] FROM unnest(v_lost) AS l (n)),
            ARRAY(SELECT tokens[l.n] FROM unnest(v_lost) AS l (n)),
            ARRAY(SELECT session_ids[l.n] FROM unnest(v_lost) AS l (n)),
            ARRAY(SELECT epochs[l.n] FROM unnest(v_lost) AS l (n)),
            ARRAY(SELECT starteds[l.n] FROM unnest(v_lost) AS l (n)),
            ARRAY(SELECT receiveds[l.n] FROM unnest(v_lost) AS l (n)),
            ARRAY(SELECT handleds[l.n] FROM unnest(v_lost) AS l (n)), node_name);
    END IF;

    IF NOT 'acquired' = ANY (outcomes) THEN
        RETURN;
    END IF;

    -- Step 3: what the rows say. One that was there already says what it was told; one that this
    -- call made starts at 0, which is right for an agent that was never dispatched to.
    SELECT array_agg(a.epoch), array_agg(a.top), array_agg(a.start), array_agg(a.floor),
           array_agg(a.token) FILTER (WHERE a.is_new)
    FROM (SELECT t.epoch, t.top, o.token, r.created_at = v_made AND t.top > 0 AS is_new,
                 CASE WHEN r.epoch = t.epoch THEN r.started WHEN r.created_at IS NOT NULL THEN 0 END
                     AS start,
                 CASE WHEN r.epoch = t.epoch THEN greatest(r.floor, r.started)
                      WHEN r.created_at IS NOT NULL THEN 0 END AS floor
          FROM unnest(outcomes, agent_ids, tokens) WITH ORDINALITY
               AS o (outcome, agent_id, token, n)
          LEFT JOIN LATERAL (SELECT m.epoch, m.top FROM agent_streams m
                             WHERE m.agent_id = o.agent_id AND o.outcome = 'acquired' OFFSET 0) t
                 ON true
          LEFT JOIN LATERAL (SELECT s.epoch, s.started, s.floor, s.created_at
                             FROM agent_subscriptions s
                             WHERE s.token = o.token AND o.outcome = 'acquired' OFFSET 0) r
                 ON true
          ORDER BY o.n) a
    INTO stream_epochs, tops, starts, floors, v_new;

    -- Step 4: where those start that this call made, of agents that were dispatched to.
    IF v_new IS NOT NULL THEN
        SELECT d.keep FROM delivery_state d INTO v_keep;
        WITH made AS MATERIALIZED (
            SELECT o.n, o.token, o.agent_id, o.session_id, o.wish, t.epoch, t.top,
                   p.known, p.shared, p."position", p.handled, p.first_started,
                   p.floor AS name_floor
            FROM unnest(tokens, agent_ids, session_ids, wishes, kinds) WITH ORDINALITY
                 AS o (token, agent_id, session_id, wish, kind, n)
            CROSS JOIN LATERAL (SELECT m.epoch, m.top FROM agent_streams m
                                WHERE m.agent_id = o.agent_id OFFSET 0) t
            LEFT JOIN LATERAL presenced_remembered(o.agent_id, t.epoch, o.session_id, v_made,
                                                   v_made - v_keep) p
                   ON o.session_id IS NOT NULL
            WHERE o.kind = 'acquire' AND o.token = ANY (v_new)),
        low AS MATERIALIZED (
            SELECT f.agent_id, f.floor
            FROM presenced_floors(ARRAY(SELECT m.agent_id FROM made m WHERE m.known IS NOT TRUE),
                                  v_made) f),
        placed AS MATERIALIZED (
            SELECT m.*, l.floor,
                   CASE WHEN m.known AND m.wish ->> 'from' = 'handled'
                            THEN least(coalesce(m.handled, m.first_started), m.top)
                        WHEN m.known THEN least(m."position", m.top)
                        ELSE l.floor END AS place
            FROM made m LEFT JOIN low l ON l.agent_id = m.agent_id),
        asked AS MATERIALIZED (
            SELECT p.*, w.history, w.start AS wished,
                   -- What is addressed to a session that nobody knows waits for it below the floor.
                   CASE WHEN p.known IS NOT TRUE AND w.start IS NULL AND p.session_id IS NOT NULL
                        THEN (SELECT min(d.seq) - 1 FROM dispatches d
                              WHERE d.agent_id = p.agent_id AND d.to_session = p.session_id
                                AND d.seq <= p.floor AND d.expires_at > v_made) END AS addressed
            FROM placed p
            CROSS JOIN LATERAL (
                SELECT CASE WHEN p.wish ->> 'offset' IS NULL AND p.wish ->> 'since' IS NULL
                                THEN NULL
                            WHEN p.wish ->> 'offset' IS NULL THEN 'confirmed'
                            WHEN p.wish ->> 'epoch' = p.epoch
                                 AND (p.wish ->> 'offset')::numeric BETWEEN 0 AND p.top
                                 AND ((p.wish ->> 'offset')::numeric = p.top
                                      OR EXISTS (
                                          SELECT FROM dispatches d
                                          WHERE d.agent_id = p.agent_id
                                            AND d.seq = (p.wish ->> 'offset')::bigint + 1))
                                THEN 'confirmed'
                            ELSE 'rejected' END AS history OFFSET 0) h
            CROSS JOIN LATERAL (
                SELECT h.history,
                       CASE WHEN h.history = 'confirmed' AND p.wish ->> 'offset' IS NOT NULL
                                THEN (p.wish ->> 'offset')::bigint
                            -- It never moves a start forward.
                            WHEN h.history = 'confirmed' THEN nullif(least(p.place, coalesce(
                                (SELECT d.seq FROM dispatches d
                                 WHERE d.agent_id = p.agent_id AND d.seq <= p.place
                                   AND d.created_at < to_timestamp(
                                           (p.wish ->> 'since')::double precision)
                                 ORDER BY d.seq DESC LIMIT 1),
                                (SELECT d.seq - 1 FROM dispatches d
                                 WHERE d.agent_id = p.agent_id ORDER BY d.seq LIMIT 1),
                                p.place)), p.place) END AS start) w)
        SELECT array_agg(a.n), array_agg(a.token), array_agg(a.epoch),
               array_agg(coalesce(a.wished, a.addressed, a.place)),
               array_agg(greatest(coalesce(a.wished, a.addressed, a.place),
                                  CASE WHEN a.wished IS NOT NULL THEN NULL
                                       WHEN a.known THEN a.name_floor
                                       ELSE a.floor END)),
               array_agg(a.history)
        FROM asked a
        INTO v_ns, v_tokens, v_epochs, v_starts, v_floors, v_histories;
        UPDATE agent_subscriptions s
        SET started = u.start, received = u.start, floor = nullif(u.floor, u.start), epoch = u.epoch
        FROM unnest(v_tokens, v_starts, v_floors, v_epochs) AS u (token, start, floor, epoch)
        WHERE s.token = ANY (ARRAY[u.token]);
        histories := array_fill(NULL::text, ARRAY[cardinality(kinds)]);
        FOR v_n IN 1..cardinality(v_ns) LOOP
            starts[v_ns[v_n]] := v_starts[v_n];
            floors[v_ns[v_n]] := v_floors[v_n];
            histories[v_ns[v_n]] := v_histories[v_n];
        END LOOP;
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------
-- Receipts
-- ---------------------------------------------------------------------------------------------

-- presenced_renew() with positions: every renewal carries the open range of its lease, so that a
-- receipt is a renewal with a number. Further parameters, in parallel with the tokens:
--   session_ids  for receipts whose row is gone: they extend what the lease left
--   epochs, starteds, receiveds, handleds
--                the open range; epoch null: a renewal without one. Another epoch than the stream's,
--                or more than its top: the renewal counts, the receipt does not.
--   ages         how long ago the client was last heard, in ms; null: unknown
-- A receipt never goes back. A jump closes a range: record it by presenced_add_ranges() first.
-- Locks, errors and results: as presenced_renew(). Cost: as a renewal.
CREATE FUNCTION presenced_renew_positions(
    agent_ids bigint[], tokens text[], session_ids text[], epochs text[], starteds bigint[],
    receiveds bigint[], handleds bigint[], ages integer[], skip_locked boolean,
    node_name text, boot text, node_version text, judge_for interval, vouches text[],
    OUT at timestamptz, OUT missing text[], OUT held text[], OUT ticked_at timestamptz)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET jit = off AS $$
DECLARE
    v_now       timestamptz := clock_timestamp();
    v_renewed   bigint;
    v_free      text[] := tokens;
    v_gone      bigint[];
    v_ignored   text;
BEGIN
    at := v_now;
    missing := '{}';
    held := '{}';
    IF cardinality(tokens) > 0 THEN
        IF skip_locked THEN
            v_free := ARRAY(SELECT s.token FROM agent_subscriptions s WHERE s.token = ANY (tokens)
                            ORDER BY s.token FOR NO KEY UPDATE SKIP LOCKED);
        END IF;
        -- The rows are locked in the order of the subquery: this join can only be a nested loop with
        -- the arrays outside. With s.token = o.token the planner might go through the whole table
        -- in another order; = ANY is no condition to merge, hash or sort by.
        v_ignored := set_config('presenced.writer', 'on', true); -- see 0006_sweep.sql
        UPDATE agent_subscriptions s
        SET last_seen_at = v_now,
            heard_at = greatest(s.heard_at, v_now - o.age * interval '1 ms'),
            -- The stream is looked up only where a receipt grows: 0 it does not count, 1 it goes on
            -- in the epoch of the row, 2 it is the first of its epoch.
            (epoch, started, received, handled) = (
                SELECT CASE r.how WHEN 0 THEN s.epoch ELSE o.epoch END,
                       CASE r.how WHEN 0 THEN s.started WHEN 1 THEN greatest(s.started, o.started)
                                  ELSE o.started END,
                       CASE r.how WHEN 0 THEN s.received WHEN 1 THEN greatest(s.received, o.received)
                                  ELSE o.received END,
                       CASE WHEN r.how = 0 OR (r.how = 1 AND o.handled IS NULL) THEN s.handled
                            WHEN r.how = 1 THEN greatest(s.handled,
                                                         least(o.handled,
                                                               greatest(s.received, o.received)))
                            WHEN o.handled IS NOT NULL THEN least(o.handled, o.received) END
                FROM (SELECT CASE
                          WHEN o.epoch IS NULL OR o.started > o.received THEN 0
                          WHEN s.epoch = o.epoch AND o.received <= s.received THEN 1
                          WHEN NOT EXISTS (SELECT FROM agent_streams t
                                           WHERE t.agent_id = s.agent_id AND t.epoch = o.epoch
                                             AND t.top >= o.received) THEN 0
                          WHEN s.epoch = o.epoch THEN 1
                          ELSE 2 END AS how OFFSET 0) r)
        FROM (SELECT i.token, i.epoch, i.started, i.received, i.handled, i.age
              FROM unnest(tokens, epochs, starteds, receiveds, handleds, ages)
                   AS i (token, epoch, started, received, handled, age)
              WHERE NOT skip_locked OR i.token = ANY (v_free)
              ORDER BY i.token COLLATE "C" OFFSET 0) o
        WHERE s.token = ANY (ARRAY[o.token]);
        GET DIAGNOSTICS v_renewed = ROW_COUNT;
        v_ignored := set_config('presenced.writer', '', true);
        IF v_renewed < cardinality(tokens) THEN
            SELECT coalesce(array_agg(o.token) FILTER (WHERE s.agent_id IS NULL), '{}'),
                   coalesce(array_agg(o.token) FILTER (
                       WHERE s.agent_id IS NOT NULL AND o.token <> ALL (v_free)), '{}'),
                   coalesce(array_agg(o.n) FILTER (
                       WHERE s.agent_id IS NULL AND o.epoch IS NOT NULL), '{}')
            FROM unnest(agent_ids, tokens, epochs) WITH ORDINALITY AS o (agent_id, token, epoch, n)
            LEFT JOIN LATERAL (SELECT f.agent_id FROM agent_subscriptions f
                               WHERE f.token = o.token AND f.agent_id = o.agent_id OFFSET 0) s
                   ON true
            INTO missing, held, v_gone;
            IF cardinality(v_gone) > 0 THEN
                PERFORM presenced_add_ranges(
                    ARRAY(SELECT agent_ids[l.n] FROM unnest(v_gone) AS l (n)),
                    ARRAY(SELECT tokens[l.n] FROM unnest(v_gone) AS l (n)),
                    ARRAY(SELECT session_ids[l.n] FROM unnest(v_gone) AS l (n)),
                    ARRAY(SELECT epochs[l.n] FROM unnest(v_gone) AS l (n)),
                    ARRAY(SELECT starteds[l.n] FROM unnest(v_gone) AS l (n)),
                    ARRAY(SELECT receiveds[l.n] FROM unnest(v_gone) AS l (n)),
                    ARRAY(SELECT handleds[l.n] FROM unnest(v_gone) AS l (n)), node_name);
            END IF;
        END IF;
    END IF;
    IF judge_for IS NOT NULL THEN
        ticked_at := presenced_tick(node_name, boot, node_version, judge_for, vouches);
        PERFORM FROM nodes n WHERE n.node = node_name AND n.boot_id = boot AND NOT n.delivers
        FOR NO KEY UPDATE SKIP LOCKED;
        IF FOUND THEN
            UPDATE nodes n SET delivers = true WHERE n.node = node_name AND n.boot_id = boot;
        END IF;
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------
-- What sessions say
-- ---------------------------------------------------------------------------------------------

-- For an app whose sessions answer over HTTP: the session has handled everything up to seq.
-- Returns 'handled', or 'ahead': that much has not been received yet, and nothing is written.
-- Errors: 23503 no such agent, 22023 an argument. Locks: the session's row in session_handled, until
-- the transaction ends.
CREATE FUNCTION presenced_ack(agent_id bigint, session_id text, seq bigint) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_agent    bigint := presenced_ack.agent_id;
    v_session  text := presenced_ack.session_id;
    v_seq      bigint := presenced_ack.seq;
    v_epoch    text;
    v_received bigint;
BEGIN
    IF v_session IS NULL OR octet_length(v_session) > 255 OR (v_seq > 0) IS NOT TRUE THEN
        RAISE EXCEPTION 'session_id or seq of an ack for agent % is not valid', v_agent
            USING HINT = 'session_id: text of at most 255 bytes; seq: from 1', ERRCODE = '22023';
    END IF;
    SELECT t.epoch FROM agent_streams t WHERE t.agent_id = v_agent INTO v_epoch;
    IF v_epoch IS NULL THEN
        RAISE EXCEPTION 'there is no agent %', v_agent
            USING HINT = 'presenced agent list; an agent is a row of agents', ERRCODE = '23503';
    END IF;
    SELECT max(c.received) FROM (
        SELECT s.received FROM agent_subscriptions s
        WHERE s.agent_id = v_agent AND s.session_id = v_session AND s.epoch = v_epoch
        UNION ALL
        SELECT r.received FROM received_ranges r
        WHERE r.agent_id = v_agent AND r.session_id = v_session AND r.epoch = v_epoch) c
    INTO v_received;
    IF (v_seq <= v_received) IS NOT TRUE THEN
        RETURN 'ahead';
    END IF;
    INSERT INTO session_handled AS h (agent_id, session_id, epoch, handled)
    VALUES (v_agent, v_session, v_epoch, v_seq)
    ON CONFLICT (agent_id, session_id) DO UPDATE
    SET epoch = excluded.epoch, at = excluded.at,
        handled = CASE WHEN h.epoch = excluded.epoch THEN greatest(h.handled, excluded.handled)
                       ELSE excluded.handled END
    WHERE h.epoch <> excluded.epoch OR h.handled < excluded.handled;
    RETURN 'handled';
END $$;

-- For a node: answers of sessions; arrays in parallel. Returns n of each answer, counted from 1 for
-- each dispatch; null: no such dispatch. One NOTIFY presenced_reply a call.
CREATE FUNCTION presenced_add_replies(
    agent_ids bigint[], tokens text[], session_ids text[], epochs text[], seqs bigint[],
    bodies json[])
RETURNS integer[]
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_numbers integer[] := '{}';
    v_number  integer;
    v_known   boolean;
    v_any     boolean := false;
BEGIN
    FOR v_n IN 1..coalesce(cardinality(agent_ids), 0) LOOP
        SELECT true FROM agent_streams t
        WHERE t.agent_id = agent_ids[v_n] AND t.epoch = epochs[v_n]
          AND seqs[v_n] BETWEEN 1 AND t.top
        INTO v_known;
        v_number := NULL;
        WHILE v_known AND v_number IS NULL LOOP
            -- Somebody may take the same number meanwhile: then the next one.
            INSERT INTO dispatch_replies AS r (agent_id, epoch, seq, n, session_id, token, body)
            SELECT agent_ids[v_n], epochs[v_n], seqs[v_n],
                   (SELECT coalesce(max(m.n), 0) + 1 FROM dispatch_replies m
                    WHERE m.agent_id = agent_ids[v_n] AND m.epoch = epochs[v_n]
                      AND m.seq = seqs[v_n]),
                   session_ids[v_n], tokens[v_n], bodies[v_n]
            ON CONFLICT (agent_id, epoch, seq, n) DO NOTHING
            RETURNING r.n INTO v_number;
            v_any := true;
        END LOOP;
        v_numbers := v_numbers || v_number;
    END LOOP;
    IF v_any AND pg_notification_queue_usage() <= 0.9 THEN
        PERFORM pg_notify('presenced_reply', '');
    END IF;
    RETURN v_numbers;
END $$;

-- For an app whose sessions answer over HTTP: an answer to a dispatch, a JSON value of at most
-- 64 KiB. It counts as handled, as far as received. Returns its number among the answers to it.
-- Errors: 23503 no such agent, 22023 no such dispatch or another argument, 54000 too large.
CREATE FUNCTION presenced_reply(agent_id bigint, session_id text, seq bigint, body json)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
#variable_conflict use_column
DECLARE
    v_agent  bigint := presenced_reply.agent_id;
    v_seq    bigint := presenced_reply.seq;
    v_epoch  text;
    v_number integer;
BEGIN
    IF presenced_reply.body IS NULL THEN
        RAISE EXCEPTION 'the answer to dispatch % of agent % is null', v_seq, v_agent
            USING HINT = 'give a JSON value; ''null'' is one', ERRCODE = '22023';
    END IF;
    IF octet_length(presenced_reply.body::text) > 65536 THEN
        RAISE EXCEPTION 'the answer to dispatch % of agent % has more than 65536 bytes', v_seq,
            v_agent
            USING HINT = 'store it elsewhere and answer where it is', ERRCODE = '54000';
    END IF;
    PERFORM presenced_ack(v_agent, presenced_reply.session_id, v_seq);
    SELECT t.epoch FROM agent_streams t WHERE t.agent_id = v_agent INTO v_epoch;
    v_number := (presenced_add_replies(ARRAY[v_agent], ARRAY[NULL::text],
                     ARRAY[presenced_reply.session_id], ARRAY[v_epoch], ARRAY[v_seq],
                     ARRAY[presenced_reply.body]))[1];
    IF v_number IS NULL THEN
        RAISE EXCEPTION 'agent % has no dispatch %', v_agent, v_seq
            USING HINT = 'seq is what presenced_dispatch() returned', ERRCODE = '22023';
    END IF;
    RETURN v_number;
END $$;

SELECT presenced_seal('presenced_keep_positions', 'presenced_add_ranges', 'presenced_floors',
                      'presenced_remembered', 'presenced_transition_positions',
                      'presenced_renew_positions', 'presenced_ack', 'presenced_add_replies',
                      'presenced_reply');
