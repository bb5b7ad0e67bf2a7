-- presenced-oldest-binary: 0.1.0
--
-- Verdicts over dispatches that expired, and trimming. Each round is a transaction of its own, by
-- whichever node comes first, and waits for no row that somebody else holds.

-- One round of verdicts: a dispatch that expired 1.5 s ago or more, and that no range covers, is
-- undelivered. A verdict is final. An addressed dispatch is covered by its session's ranges only.
--   row_limit  about so many dispatches a round (those that expire in the same moment go together)
-- ran: false when another node judges, or when nothing may be judged: no node ticks, or the ticks
-- came back less than 3 s ago, and receipts may be on their way. judged, lost: how many had their
-- verdict, and how many of them are undelivered. is_full: there is more to do, go on at once.
-- NOTIFY presenced_undelivered, '{"count":n,"schema":"..."}', once a round.
-- Locks: one advisory lock, and the row of delivery_state. Cost: 5 us a dispatch, and a look at the
-- ranges of each agent once.
--
-- Nothing is overlooked, however long its transaction was open: a round takes what expired since
-- the round before, and what was committed since then and had expired earlier.
CREATE FUNCTION presenced_judge(
    row_limit integer DEFAULT 2000,
    OUT ran boolean, OUT judged bigint, OUT lost bigint, OUT is_full boolean)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_now      timestamptz;
    v_clock    presence_clock;
    v_state    delivery_state;
    v_before   timestamptz;
    v_until    timestamptz;
    v_snapshot pg_snapshot;
    v_agents   bigint[];
    v_epochs   text[];
    v_seqs     bigint[];
    v_sessions text[];
    v_writers  text[];
BEGIN
    ran := false;
    judged := 0;
    lost := 0;
    is_full := false;
    IF NOT pg_try_advisory_xact_lock(
               hashtextextended('presenced judge ' || current_schema(), 0)) THEN
        RETURN;
    END IF;
    v_now := clock_timestamp();
    SELECT c.* FROM presence_clock c INTO v_clock;
    IF (v_now <= v_clock.judge_until
        AND v_now >= v_clock.amnesty_until - v_clock.stale_after + interval '3 seconds')
       IS NOT TRUE THEN
        RETURN;
    END IF;
    SELECT s.* FROM delivery_state s FOR NO KEY UPDATE SKIP LOCKED INTO v_state;
    IF v_state.one IS NULL THEN
        RETURN;
    END IF;
    ran := true;

    -- Step 1: up to which expiry this round goes. A clock that was stepped back goes over the same
    -- time again: verdicts stand, and are not given twice.
    v_until := v_now - interval '1.5 seconds';
    v_before := least(v_state.judged_until, v_until);
    SELECT d.expires_at FROM dispatches d
    WHERE d.expires_at > v_before AND d.expires_at <= v_until
    ORDER BY d.expires_at OFFSET greatest(row_limit, 1) - 1 LIMIT 1
    INTO v_now;
    IF v_now IS NOT NULL THEN
        is_full := v_now < v_until;
        v_until := v_now;
    END IF;

    -- Step 2: what is judged, and the snapshot that sees it, in one statement.
    SELECT array_agg(d.agent_id), array_agg(d.epoch), array_agg(d.seq), array_agg(d.to_session),
           pg_current_snapshot()
    FROM (
        SELECT f.agent_id, f.epoch, f.seq, f.to_session FROM dispatches f
        WHERE f.expires_at > v_before AND f.expires_at <= v_until
        UNION ALL
        SELECT f.agent_id, f.epoch, f.seq, f.to_session FROM dispatches f
        WHERE f.xid = ANY (ARRAY(SELECT pg_snapshot_xip(v_state.judged_snapshot)))
          AND f.expires_at <= v_before
        UNION ALL
        SELECT f.agent_id, f.epoch, f.seq, f.to_session FROM dispatches f
        WHERE f.xid >= pg_snapshot_xmax(v_state.judged_snapshot) AND f.expires_at <= v_before) d
    INTO v_agents, v_epochs, v_seqs, v_sessions, v_snapshot;
    judged := coalesce(cardinality(v_agents), 0);

    FOR v_round IN 1..2 LOOP
        EXIT WHEN v_agents IS NULL;
        -- Step 3: what no range covers.
        WITH due AS MATERIALIZED (
            SELECT o.* FROM unnest(v_agents, v_epochs, v_seqs, v_sessions)
                            AS o (agent_id, epoch, seq, to_session)),
        covers AS MATERIALIZED (
            SELECT a.agent_id, a.epoch, presenced_coverage(a.agent_id, a.epoch) AS covered
            FROM (SELECT DISTINCT d.agent_id, d.epoch FROM due d WHERE d.to_session IS NULL) a)
        SELECT array_agg(d.agent_id), array_agg(d.epoch), array_agg(d.seq), array_agg(d.to_session)
        FROM due d LEFT JOIN covers c ON c.agent_id = d.agent_id AND c.epoch = d.epoch
        WHERE CASE WHEN d.to_session IS NULL THEN NOT c.covered @> d.seq
                   ELSE NOT presenced_is_covered(d.agent_id, d.epoch, d.to_session, d.seq) END
        INTO v_agents, v_epochs, v_seqs, v_sessions;

        -- Step 4: a receipt may be in a transaction that has not committed yet. Let those that
        -- write leases at this moment end, for half a second at most, and look again.
        IF v_round = 1 AND v_agents IS NOT NULL THEN
            v_writers := ARRAY(
                SELECT l.virtualtransaction FROM pg_locks l
                WHERE l.relation IN ('agent_subscriptions'::regclass, 'received_ranges'::regclass)
                  AND l.mode = 'RowExclusiveLock' AND l.granted AND l.pid <> pg_backend_pid());
            FOR v_wait IN 1..25 LOOP
                EXIT WHEN cardinality(v_writers) = 0;
                PERFORM pg_sleep(0.02);
                v_writers := ARRAY(
                    SELECT l.virtualtransaction FROM pg_locks l
                    WHERE l.relation IN ('agent_subscriptions'::regclass,
                                         'received_ranges'::regclass)
                      AND l.mode = 'RowExclusiveLock' AND l.virtualtransaction = ANY (v_writers));
            END LOOP;
        END IF;
    END LOOP;

    -- Step 5: write the verdicts, and how far they go.
    IF v_agents IS NOT NULL THEN
        INSERT INTO undelivered AS u
               (agent_id, epoch, seq, key, to_session, created_at, expires_at)
        SELECT d.agent_id, d.epoch, d.seq, d.key, d.to_session, d.created_at, d.expires_at
        FROM unnest(v_agents, v_epochs, v_seqs) AS o (agent_id, epoch, seq),
             LATERAL (SELECT f.* FROM dispatches f
                      WHERE f.agent_id = o.agent_id AND f.seq = o.seq AND f.epoch = o.epoch
                      OFFSET 0) d
        ON CONFLICT (agent_id, epoch, seq) DO NOTHING;
        GET DIAGNOSTICS lost = ROW_COUNT;
    END IF;
    UPDATE delivery_state s SET judged_until = v_until, judged_snapshot = v_snapshot;
    IF lost > 0 AND pg_notification_queue_usage() <= 0.9 THEN
        PERFORM pg_notify('presenced_undelivered', format(
            '{"count":%s,"schema":%s}', lost, to_json(current_schema()::text)));
    END IF;
END $$;

-- One round of trimming.
--   log_keep   how long verdicts and answers are kept
--   row_limit  rows a round, of each kind
-- Dispatches go when their transaction began `keep` ago or earlier, they expired a minute ago or
-- earlier, and they have had their verdict. By the age of the transaction alone, the row of one that
-- was open for days would go before it had been delivered. By the clock alone, a clock that is
-- stepped ahead for a moment would end the log. Nothing goes while no node ticks, or in an amnesty.
-- Ranges of one name that touch become one row, two minutes after the end of the lease; ranges and
-- positions go `keep` after the end of the lease. An agent remembers 1,000 names: of older ones it
-- stays known what was received, and not by whom.
-- ran: false when another node trims. is_full: go on at once. Locks: one advisory lock; rows that
-- somebody holds are left for later. Cost: 1.5 us a dispatch, 20 us a range.
CREATE FUNCTION presenced_trim_dispatches(
    log_keep interval DEFAULT '90 days', row_limit integer DEFAULT 2000,
    OUT ran boolean, OUT trimmed bigint, OUT merged bigint, OUT is_full boolean)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now   timestamptz;
    v_clock presence_clock;
    v_state delivery_state;
    v_bound xid8;
    v_fresh bigint[];
    v_rows  bigint;
BEGIN
    ran := false;
    trimmed := 0;
    merged := 0;
    is_full := false;
    IF NOT pg_try_advisory_xact_lock(
               hashtextextended('presenced trim ' || current_schema(), 0)) THEN
        RETURN;
    END IF;
    ran := true;
    v_now := clock_timestamp();
    SELECT c.* FROM presence_clock c INTO v_clock;
    SELECT s.* FROM delivery_state s INTO v_state;

    -- Step 1: note which transactions are old. Notes from the future are of a clock that was wrong.
    DELETE FROM trim_horizons h WHERE h.noted_at > v_now;
    IF NOT EXISTS (SELECT FROM trim_horizons h WHERE h.noted_at > v_now - interval '1 minute') THEN
        INSERT INTO trim_horizons (noted_at, bound)
        VALUES (v_now, pg_snapshot_xmax(pg_current_snapshot()));
        DELETE FROM session_handled h WHERE (h.agent_id, h.session_id) IN (
            SELECT f.agent_id, f.session_id FROM session_handled f WHERE f.at < v_now - log_keep
            LIMIT row_limit FOR UPDATE SKIP LOCKED);
    END IF;
    IF (v_now <= v_clock.judge_until AND v_now >= v_clock.amnesty_until) IS NOT TRUE THEN
        RETURN;
    END IF;

    -- Step 2: trim dispatches.
    SELECT h.bound FROM trim_horizons h WHERE h.noted_at <= v_now - v_state.keep
    ORDER BY h.noted_at DESC LIMIT 1 INTO v_bound;
    IF v_bound IS NOT NULL THEN
        DELETE FROM dispatches d WHERE d.ctid = ANY (ARRAY(
            SELECT f.ctid FROM dispatches f
            WHERE f.xid < v_bound AND f.expires_at < v_now - interval '1 minute'
              AND f.expires_at <= v_state.judged_until
              AND pg_visible_in_snapshot(f.xid, v_state.judged_snapshot)
            ORDER BY f.xid LIMIT row_limit FOR UPDATE SKIP LOCKED));
        GET DIAGNOSTICS trimmed = ROW_COUNT;
        is_full := trimmed >= row_limit;
        DELETE FROM trim_horizons h
        WHERE h.noted_at < (SELECT max(o.noted_at) FROM trim_horizons o
                            WHERE o.noted_at <= v_now - v_state.keep);
    END IF;

    -- Step 3: trim positions, verdicts and answers.
    DELETE FROM received_ranges r WHERE r.ctid = ANY (ARRAY(
        SELECT f.ctid FROM received_ranges f WHERE f.ended_at < v_now - v_state.keep
        ORDER BY f.ended_at LIMIT row_limit FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    is_full := is_full OR v_rows >= row_limit;
    DELETE FROM undelivered u WHERE u.ctid = ANY (ARRAY(
        SELECT f.ctid FROM undelivered f WHERE f.judged_at < v_now - log_keep
        ORDER BY f.judged_at LIMIT row_limit FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    is_full := is_full OR v_rows >= row_limit;
    DELETE FROM dispatch_replies p WHERE p.ctid = ANY (ARRAY(
        SELECT f.ctid FROM dispatch_replies f WHERE f.at < v_now - log_keep
        ORDER BY f.at LIMIT row_limit FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    is_full := is_full OR v_rows >= row_limit;

    -- Step 4: merge ranges. Of a shared name those of one lease, or the lowest position were lost.
    -- A name is judged before its ranges are merged, by all that is known of its leases.
    v_fresh := ARRAY(
        SELECT DISTINCT f.agent_id FROM (
            SELECT r.agent_id FROM received_ranges r
            WHERE NOT r.merged AND r.ended_at < v_now - interval '2 minutes' LIMIT row_limit) f);
    WITH names AS MATERIALIZED (
        SELECT DISTINCT r.agent_id, r.session_id FROM received_ranges r
        WHERE NOT r.merged AND r.ended_at < v_now - interval '2 minutes'
          AND r.agent_id = ANY (v_fresh)
        LIMIT row_limit),
    judged AS MATERIALIZED (
        SELECT n.agent_id, n.session_id, t.epoch, coalesce(p.shared, false) AS is_shared
        FROM names n
        LEFT JOIN LATERAL (SELECT s.epoch FROM agent_streams s
                           WHERE s.agent_id = n.agent_id OFFSET 0) t ON true
        LEFT JOIN LATERAL presenced_remembered(n.agent_id, t.epoch, n.session_id, NULL,
                                               v_now - v_state.keep) p
               ON n.session_id IS NOT NULL AND t.epoch IS NOT NULL),
    picked AS MATERIALIZED (
        SELECT r.ctid AS row, j.is_shared, j.epoch AS stream_epoch
        FROM judged j CROSS JOIN LATERAL (
            SELECT f.ctid FROM received_ranges f
            WHERE f.agent_id = j.agent_id
              AND (f.session_id = j.session_id OR (f.session_id IS NULL AND j.session_id IS NULL))
              AND f.ended_at < v_now - interval '2 minutes'
            FOR UPDATE SKIP LOCKED) r),
    gone AS (
        DELETE FROM received_ranges r WHERE r.ctid = ANY (ARRAY(SELECT p.row FROM picked p))
        RETURNING r.*, r.ctid AS row),
    units AS MATERIALIZED (
        SELECT g.agent_id, g.epoch, g.session_id,
               range_agg(int8range(g.started, g.received, '(]')) AS covered,
               max(g.received) AS last, max(g.handled) AS handled, max(g.floor) AS floor,
               bool_or(g.shared) OR bool_or(p.is_shared) AS shared, max(g.ended_at) AS ended_at,
               (array_agg(g.token ORDER BY g.received DESC, g.ended_at DESC))[1] AS token,
               (array_agg(g.node ORDER BY g.received DESC, g.ended_at DESC))[1] AS node,
               (array_agg(g.created_at ORDER BY g.received DESC, g.ended_at DESC))[1] AS created_at,
               (array_agg(g.heard_at ORDER BY g.received DESC, g.ended_at DESC))[1] AS heard_at
        FROM gone g JOIN picked p ON p.row = g.row AND p.stream_epoch = g.epoch
        GROUP BY g.agent_id, g.epoch, g.session_id, CASE WHEN p.is_shared THEN g.token END)
    INSERT INTO received_ranges (agent_id, epoch, session_id, token, node, started, received,
                                 handled, floor, shared, created_at, heard_at, ended_at, merged)
    SELECT u.agent_id, u.epoch, u.session_id, u.token, u.node, r.started, r.received, u.handled,
           u.floor, u.shared, u.created_at, u.heard_at, u.ended_at, true
    FROM units u CROSS JOIN LATERAL (
        SELECT lower(c.range) - 1 AS started, upper(c.range) - 1 AS received
        FROM unnest(u.covered) AS c (range)
        UNION ALL
        -- The position stays, also where nothing was received.
        SELECT u.last, u.last
        WHERE u.session_id IS NOT NULL AND (u.last = 0 OR NOT u.covered @> u.last)) r;
    GET DIAGNOSTICS merged = ROW_COUNT;

    -- Step 5: forget names beyond the thousandth, but for those that a dispatch waits for. Only
    -- agents that have new rows can have more names than before.
    WITH crowded AS MATERIALIZED (
        SELECT r.agent_id FROM received_ranges r
        WHERE r.agent_id = ANY (v_fresh) AND r.session_id IS NOT NULL
        GROUP BY r.agent_id HAVING count(DISTINCT r.session_id) > 1000),
    ranked AS MATERIALIZED (
        SELECT n.agent_id, n.session_id,
               row_number() OVER (PARTITION BY n.agent_id ORDER BY n.last DESC) AS nth
        FROM (SELECT r.agent_id, r.session_id, max(r.ended_at) AS last
              FROM crowded c JOIN received_ranges r ON r.agent_id = c.agent_id
              WHERE r.session_id IS NOT NULL GROUP BY 1, 2) n),
    old AS MATERIALIZED (
        SELECT k.agent_id, k.session_id FROM ranked k
        WHERE k.nth > 1000
          AND NOT EXISTS (SELECT FROM dispatches d
                          WHERE d.agent_id = k.agent_id AND d.to_session = k.session_id
                            AND d.expires_at > v_state.judged_until)
        LIMIT row_limit)
    UPDATE received_ranges r SET session_id = NULL, merged = false
    WHERE r.ctid = ANY (ARRAY(
        SELECT f.ctid FROM old o JOIN received_ranges f
               ON f.agent_id = o.agent_id AND f.session_id = o.session_id
        FOR UPDATE OF f SKIP LOCKED));
END $$;

SELECT presenced_seal('presenced_judge', 'presenced_trim_dispatches');
