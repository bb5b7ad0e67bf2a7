-- presenced-oldest-binary: 0.1.0
--
-- Dispatching: what apps call, the function behind it, and the wake-up at commit.

-- ---------------------------------------------------------------------------------------------
-- Readers that run with the owner's rights: apps have none to the tables behind them
-- ---------------------------------------------------------------------------------------------

CREATE FUNCTION presenced_live_cutoff(at timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER
RETURN presenced_stale_cutoff(at);

CREATE FUNCTION presenced_live_vouched(at timestamptz) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER
RETURN presenced_vouched(at);

-- What one agent has received in an epoch, by anybody: closed ranges and the open ones of leases.
CREATE FUNCTION presenced_coverage(agent bigint, of_epoch text) RETURNS int8multirange
LANGUAGE sql STABLE
RETURN (SELECT coalesce(range_agg(int8range(c.started, c.received, '(]')), '{}')
        FROM (SELECT s.started, s.received FROM agent_subscriptions s
              WHERE s.agent_id = agent AND s.epoch = of_epoch AND s.received > s.started
              UNION ALL
              SELECT r.started, r.received FROM received_ranges r
              WHERE r.agent_id = agent AND r.epoch = of_epoch AND r.received > r.started) c);

-- Is an addressed dispatch received: does a range of its session cover it?
CREATE FUNCTION presenced_is_covered(agent bigint, of_epoch text, session text, n bigint)
RETURNS boolean
LANGUAGE sql STABLE
RETURN EXISTS (SELECT FROM agent_subscriptions s
               WHERE s.agent_id = agent AND s.session_id = session AND s.epoch = of_epoch
                 AND s.started < n AND s.received >= n)
    OR EXISTS (SELECT FROM received_ranges r
               WHERE r.agent_id = agent AND r.session_id = session AND r.epoch = of_epoch
                 AND r.started < n AND r.received >= n);

-- How many dispatches of an agent are neither received nor expired; stops counting at stop_at.
-- Cost: an index scan over what no range covers, and over what is addressed.
CREATE FUNCTION presenced_count_waiting(agent bigint, of_epoch text, stop_at integer)
RETURNS bigint
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_now  timestamptz := clock_timestamp();
    v_rest int8multirange := int8multirange(int8range(0, NULL, '()'))
                             - presenced_coverage(agent, of_epoch);
BEGIN
    RETURN (
        SELECT count(*) FROM (
            SELECT FROM unnest(v_rest) AS g (gap)
            CROSS JOIN LATERAL (
                SELECT FROM dispatches d
                WHERE d.agent_id = agent AND d.seq >= lower(g.gap)
                  AND d.seq < coalesce(upper(g.gap), 9223372036854775807)
                  AND d.to_session IS NULL AND d.expires_at > v_now
                OFFSET 0) d
            UNION ALL
            SELECT FROM dispatches d
            WHERE d.agent_id = agent AND d.to_session IS NOT NULL AND d.expires_at > v_now
              AND NOT presenced_is_covered(agent, of_epoch, d.to_session, d.seq)
            LIMIT stop_at) w);
END $$;

-- ---------------------------------------------------------------------------------------------
-- The wake-up
-- ---------------------------------------------------------------------------------------------

-- At the commit of a transaction that dispatched, once a transaction: wakes the nodes, unless they
-- are awake. NOTIFY makes commits stand in one line through the whole server, each for the length
-- of a flush; while there is much to deliver, nodes poll, and commits do not notify.
--
-- It is decided at the commit, by the clock: between the call and the commit the nodes may have
-- fallen asleep. A wake row that is missing, in the past or too far in the future notifies. So does
-- an old version of the row, as REPEATABLE READ sees it: awake_until only grows.
--
-- PREPARE TRANSACTION is refused, because PostgreSQL refuses it to a transaction that has notified.
-- A transaction that did not notify could be prepared. Where the server allows prepared
-- transactions at all, every commit notifies.
CREATE FUNCTION presenced_wake_nodes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    v_ignored text;
BEGIN
    -- A dispatch that was committed and is lost in a crash might have been delivered already.
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        v_ignored := set_config('synchronous_commit', 'on', true);
    END IF;
    IF (SELECT w.awake_until > clock_timestamp()
               AND w.awake_until <= clock_timestamp() + interval '3 seconds'
        FROM presenced_wake w) IS TRUE
       AND current_setting('max_prepared_transactions') = '0' THEN
        RETURN NULL;
    END IF;
    -- COMMIT fails when the queue of notifications is full. The nodes look once in 0.8 s anyway.
    IF pg_notification_queue_usage() > 0.9 AND current_setting('max_prepared_transactions') = '0'
    THEN
        RAISE WARNING 'presenced: a dispatch is not notified: the notification queue is full; '
            'a listener that is idle in a transaction keeps it (pg_stat_activity)';
        RETURN NULL;
    END IF;
    PERFORM pg_notify('presenced_dispatch',
                      format('{"schema":%s}', to_json(current_schema()::text)));
    RETURN NULL;
END $$;
-- The condition is evaluated at the insert, and is true once a transaction: presenced.waking is
-- rolled back with the savepoint to which the row belongs, and so is the trigger's event.
CREATE CONSTRAINT TRIGGER dispatches_wake AFTER INSERT ON dispatches
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (current_setting('presenced.waking', true) IS DISTINCT FROM pg_current_xact_id()::text
          AND set_config('presenced.waking', pg_current_xact_id()::text, true) IS NOT NULL)
    EXECUTE FUNCTION presenced_wake_nodes();

-- For a node that is hot: keeps every node awake for `how_long` from now, 3 s at most, and wakes
-- those that sleep. Returns until when, by the database's clock, as time from now; null when
-- somebody else holds the row.
CREATE FUNCTION presenced_keep_awake(how_long interval) RETURNS interval
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_ignored text := set_config('lock_timeout', '500ms', true);
    v_now     timestamptz;
    v_until   timestamptz;
BEGIN
    PERFORM FROM presenced_wake w FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    v_now := clock_timestamp();
    -- It grows, unless the clock was stepped back.
    UPDATE presenced_wake w
    SET awake_until = CASE WHEN w.awake_until > v_now + interval '3 seconds'
                           THEN v_now + least(how_long, interval '3 seconds')
                           ELSE greatest(w.awake_until,
                                         v_now + least(how_long, interval '3 seconds')) END
    RETURNING w.awake_until INTO v_until;
    IF pg_notification_queue_usage() <= 0.9 THEN
        PERFORM pg_notify('presenced_dispatch',
                          format('{"schema":%s}', to_json(current_schema()::text)));
    END IF;
    v_ignored := set_config('lock_timeout', '10s', true);
    RETURN v_until - v_now;
END $$;

-- ---------------------------------------------------------------------------------------------
-- One dispatch
-- ---------------------------------------------------------------------------------------------

-- Writes one dispatch for the sessions of an agent, in the caller's transaction.
--   payload     a JSON object of at most 256 KiB; the bytes stay as they are
--   ttl         how long it may be delivered; at most delivery_state.keep (24 hours)
--   to_session  only for sessions of this session_id, at most 255 bytes
--   key         at most 255 bytes; written once an agent, as long as its dispatch is kept
--   only_if     'any', or 'reachable': only if a session it is for is live
-- outcome: 'sent', 'duplicate' (seq is the first one's), 'unreachable' or 'unknown' (nothing is
-- written). sessions: live leases it is for. known: presence_known().
-- Errors, each with a hint: 23503 no such agent; 22023 an argument; 54000 a payload that is too
-- large; 53400 10,000 dispatches wait; 40001 under REPEATABLE READ.
-- Locks: the agent's row in agent_streams, until the transaction ends. Two transactions that
-- dispatch to the same agents in two orders can deadlock (40P01): presenced_dispatch_many() does not.
-- Cost: 90 us, of which half is the update and the insert; 0.6 us a live lease of the agent.
CREATE FUNCTION presenced_dispatch(
    agent_id bigint, payload json, ttl interval DEFAULT '5 minutes', to_session text DEFAULT NULL,
    key text DEFAULT NULL, only_if text DEFAULT 'any',
    OUT outcome text, OUT seq bigint, OUT sessions integer, OUT known boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    c_limit  CONSTANT bigint := 10000;
    v_agent  bigint := presenced_dispatch.agent_id;
    v_to     text := presenced_dispatch.to_session;
    v_key    text := presenced_dispatch.key;
    v_ttl    interval := presenced_dispatch.ttl;
    v_only   text := presenced_dispatch.only_if;
    v_bytes  integer := octet_length(presenced_dispatch.payload::text);
    v_now    timestamptz := clock_timestamp();
    v_keep   interval;
    v_cutoff timestamptz;
    v_stream agent_streams;
    v_count  bigint;
BEGIN
    -- Step 1: judge the arguments.
    IF v_agent IS NULL THEN
        RAISE EXCEPTION 'agent_id is null'
            USING HINT = 'give the id of an agent', ERRCODE = '22023';
    END IF;
    IF json_typeof(presenced_dispatch.payload) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'the payload for agent % is no JSON object', v_agent
            USING HINT = 'give an object: {"type":"...", ...}', ERRCODE = '22023';
    END IF;
    IF v_bytes > 262144 THEN
        RAISE EXCEPTION 'the payload for agent % has % bytes, and may have 262144', v_agent, v_bytes
            USING HINT = 'store it elsewhere and dispatch where it is', ERRCODE = '54000';
    END IF;
    SELECT s.keep FROM delivery_state s INTO v_keep;
    IF (v_ttl > interval '0' AND v_ttl <= v_keep) IS NOT TRUE THEN
        RAISE EXCEPTION 'ttl % for agent % is not within (0, %]', coalesce(v_ttl::text, 'null'),
            v_agent, v_keep
            USING HINT = 'PRESENCED_DISPATCHES_KEEP is the longest ttl; migrate records it',
                  ERRCODE = '22023';
    END IF;
    IF octet_length(v_key) > 255 OR octet_length(v_to) > 255 THEN
        RAISE EXCEPTION 'key or to_session for agent % is longer than 255 bytes', v_agent
            USING HINT = 'shorten it, to its SHA-256 for instance', ERRCODE = '22023';
    END IF;
    IF (v_only IN ('any', 'reachable')) IS NOT TRUE THEN
        RAISE EXCEPTION 'only_if is %, and may be any or reachable', coalesce(v_only, 'null')
            USING HINT = 'reachable writes nothing when no session it is for is live',
                  ERRCODE = '22023';
    END IF;

    -- Step 2: count who is there, before the counter is locked.
    SELECT presenced_stale_cutoff(v_now, c),
           coalesce(c.ticked_at > v_now - c.stale_after AND c.ticked_at < v_now + c.stale_after,
                    false)
    FROM presence_clock c INTO v_cutoff, known;
    known := coalesce(known, false);
    SELECT count(*) FROM agent_subscriptions s
    WHERE s.agent_id = v_agent AND (v_to IS NULL OR s.session_id = v_to)
      AND s.started IS NOT NULL
      AND (s.last_seen_at > v_cutoff OR s.token = ANY ((SELECT presenced_vouched(v_now))::text[]))
    INTO sessions;

    -- Step 3: lock the stream where nothing may be written in the end. Who waited here sees what
    -- was committed meanwhile: every statement takes its own snapshot.
    IF v_key IS NOT NULL OR v_only = 'reachable' THEN
        PERFORM FROM agent_streams t WHERE t.agent_id = v_agent FOR NO KEY UPDATE;
        IF v_key IS NOT NULL THEN
            SELECT d.seq FROM dispatches d WHERE d.agent_id = v_agent AND d.key = v_key INTO seq;
            IF seq IS NOT NULL THEN
                outcome := 'duplicate';
                RETURN;
            END IF;
        END IF;
        IF v_only = 'reachable' AND (NOT known OR sessions = 0) THEN
            IF NOT EXISTS (SELECT FROM agents a WHERE a.id = v_agent) THEN
                RAISE EXCEPTION 'there is no agent %', v_agent
                    USING HINT = 'presenced agent list; an agent is a row of agents',
                          ERRCODE = '23503';
            END IF;
            outcome := CASE WHEN known THEN 'unreachable' ELSE 'unknown' END;
            RETURN;
        END IF;
    END IF;

    -- Step 4: take the next seq. The lock on the row makes the order of seq that of the commits,
    -- and a rolled-back transaction leaves no hole.
    UPDATE agent_streams t SET top = t.top + 1 WHERE t.agent_id = v_agent RETURNING t.*
    INTO v_stream;
    IF v_stream.agent_id IS NULL THEN
        -- The agent came to another owner while this call waited, or somebody removed the row.
        IF NOT EXISTS (SELECT FROM agents a WHERE a.id = v_agent) THEN
            RAISE EXCEPTION 'there is no agent %', v_agent
                USING HINT = 'presenced agent list; an agent is a row of agents',
                      ERRCODE = '23503';
        END IF;
        INSERT INTO agent_streams AS t (agent_id, top) VALUES (v_agent, 1)
        ON CONFLICT (agent_id) DO UPDATE SET top = t.top + 1
        RETURNING t.* INTO v_stream;
    END IF;
    IF v_stream.top = 1 AND NOT EXISTS (SELECT FROM delivery_began) THEN
        INSERT INTO delivery_began DEFAULT VALUES;
    END IF;

    -- Step 5: judge the limit. What waits is counted only when it may have reached the limit.
    IF v_stream.counted + v_stream.top - v_stream.counted_at > c_limit THEN
        v_count := presenced_count_waiting(v_agent, v_stream.epoch, c_limit::integer);
        IF v_count >= c_limit THEN
            RAISE EXCEPTION '% dispatches for agent % are neither received nor expired', c_limit,
                v_agent
                USING HINT = 'dispatch less, with a shorter ttl, or only_if => ''reachable''',
                      ERRCODE = '53400';
        END IF;
        UPDATE agent_streams t SET counted = v_count + 1, counted_at = v_stream.top
        WHERE t.agent_id = v_agent;
    END IF;

    -- Step 6: write.
    v_now := clock_timestamp();
    INSERT INTO dispatches AS d
           (agent_id, seq, epoch, payload, bytes, to_session, key, sender_role, created_at,
            expires_at)
    VALUES (v_agent, v_stream.top, v_stream.epoch, presenced_dispatch.payload, v_bytes, v_to, v_key,
            session_user, v_now, v_now + v_ttl);
    seq := v_stream.top;
    outcome := 'sent';
END $$;

-- ---------------------------------------------------------------------------------------------
-- Many dispatches
-- ---------------------------------------------------------------------------------------------

-- Writes many dispatches in one transaction; the arrays run in parallel, one element a dispatch.
-- For presenced itself, which says who dispatched. Elements are as in presenced_dispatch(); an array
-- or an element that is null means its default there.
--   waits  true: waits for an agent's stream that somebody else holds; false: such an agent is 'busy'
-- A row an element, in order. outcome: as presenced_dispatch(), and 'busy', and 'refused': the
-- element is at fault, `error` is the SQLSTATE, `why` a sentence. The others are written.
-- same_payload: with 'duplicate', whether the first one's payload is the same, byte for byte.
-- Locks: the streams, by agent_id. Cost: 50 us a dispatch in batches of 100 to 500.
--
-- enable_nestloop = off: the joins of the elements with their results are hash joins, whatever the
-- planner thinks of the size of the arrays. A LATERAL is a nested loop all the same.
CREATE FUNCTION presenced_dispatch_batch(
    agent_ids bigint[], payloads json[], ttls interval[], to_sessions text[], keys text[],
    only_if text, waits boolean, kind text,
    sender_tokens bigint[], sender_agents bigint[], sender_sessions text[])
RETURNS TABLE (ord integer, outcome text, seq bigint, sessions integer, known boolean, error text,
               why text, same_payload boolean)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_nestloop = off
SET jit = off AS $$
#variable_conflict use_column
DECLARE
    c_limit   CONSTANT bigint := 10000;
    v_size    integer := coalesce(cardinality(agent_ids), 0);
    v_now     timestamptz := clock_timestamp();
    v_known   boolean;
    v_keep    interval;
    v_cutoff  timestamptz;
    v_errors  text[];      -- by element
    v_lives   integer[];   -- by element
    v_agents  bigint[];    -- those that an element without fault is for
    v_locked  bigint[];
    v_missing bigint[];
    v_full    bigint[] := '{}';   -- agents whose waiting dispatches were counted, and their room
    v_rooms   bigint[] := '{}';
BEGIN
    IF (only_if IN ('any', 'reachable')) IS NOT TRUE THEN
        RAISE EXCEPTION 'only_if is %, and may be any or reachable', coalesce(only_if, 'null')
            USING HINT = 'reachable writes nothing when no session it is for is live',
                  ERRCODE = '22023';
    END IF;
    IF coalesce(cardinality(payloads), 0) <> v_size
       OR coalesce(nullif(cardinality(ttls), 0), v_size) <> v_size
       OR coalesce(nullif(cardinality(to_sessions), 0), v_size) <> v_size
       OR coalesce(nullif(cardinality(keys), 0), v_size) <> v_size THEN
        RAISE EXCEPTION 'the arrays have different lengths'
            USING HINT = 'one element a dispatch in each; ttls, to_sessions and keys may be null',
                  ERRCODE = '22023';
    END IF;
    SELECT s.keep FROM delivery_state s INTO v_keep;
    SELECT presenced_stale_cutoff(v_now, c),
           c.ticked_at > v_now - c.stale_after AND c.ticked_at < v_now + c.stale_after
    FROM presence_clock c INTO v_cutoff, v_known;
    v_known := coalesce(v_known, false);

    -- Step 1: judge every element by itself, and count who is there, before a stream is locked.
    SELECT array_agg(j.error ORDER BY j.ord),
           array_agg(DISTINCT j.agent_id) FILTER (WHERE j.error IS NULL)
    FROM (SELECT o.ord, o.agent_id,
                 CASE WHEN o.agent_id IS NULL THEN '22023 agent_id is null'
                      WHEN json_typeof(o.payload) IS DISTINCT FROM 'object'
                          THEN '22023 the payload is no JSON object'
                      WHEN octet_length(o.payload::text) > 262144
                          THEN '54000 the payload has more than 262144 bytes'
                      WHEN (coalesce(o.ttl, interval '5 minutes') > interval '0'
                            AND coalesce(o.ttl, interval '5 minutes') <= v_keep) IS NOT TRUE
                          THEN format('22023 ttl is not within (0, %s]', v_keep)
                      WHEN octet_length(o.key) > 255 OR octet_length(o.to_session) > 255
                          THEN '22023 key or to_session is longer than 255 bytes' END AS error
          FROM unnest(agent_ids, payloads, ttls, to_sessions, keys) WITH ORDINALITY
               AS o (agent_id, payload, ttl, to_session, key, ord)) j
    INTO v_errors, v_agents;
    SELECT array_agg(c.live ORDER BY o.ord)
    FROM unnest(agent_ids) WITH ORDINALITY AS o (agent_id, ord)
    LEFT JOIN (SELECT g.agent_id, g.to_session, l.live
               FROM (SELECT DISTINCT p.agent_id, p.to_session
                     FROM unnest(agent_ids, to_sessions) AS p (agent_id, to_session)) g,
                    LATERAL (SELECT count(*)::integer AS live FROM agent_subscriptions s
                             WHERE s.agent_id = g.agent_id
                               AND (g.to_session IS NULL OR s.session_id = g.to_session)
                               AND s.started IS NOT NULL
                               AND (s.last_seen_at > v_cutoff
                                    OR s.token = ANY ((SELECT presenced_vouched(v_now))::text[]))
                    ) l) c
           ON c.agent_id = o.agent_id
          AND c.to_session IS NOT DISTINCT FROM (to_sessions)[o.ord]
    INTO v_lives;

    -- Step 2: lock the streams by agent_id. One that is not there is made, if the agent is.
    IF waits THEN
        v_locked := ARRAY(SELECT t.agent_id FROM agent_streams t WHERE t.agent_id = ANY (v_agents)
                          ORDER BY t.agent_id FOR NO KEY UPDATE);
    ELSE
        v_locked := ARRAY(SELECT t.agent_id FROM agent_streams t WHERE t.agent_id = ANY (v_agents)
                          ORDER BY t.agent_id FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
    IF cardinality(v_locked) < cardinality(v_agents) THEN
        v_missing := ARRAY(SELECT a.id FROM agents a
                           WHERE a.id = ANY (v_agents) AND a.id <> ALL (v_locked)
                             AND NOT EXISTS (SELECT FROM agent_streams t WHERE t.agent_id = a.id)
                           ORDER BY a.id);
        INSERT INTO agent_streams (agent_id) SELECT m.id FROM unnest(v_missing) AS m (id)
        ON CONFLICT DO NOTHING;
        IF waits THEN
            v_locked := v_locked || ARRAY(
                SELECT t.agent_id FROM agent_streams t
                WHERE t.agent_id = ANY (v_agents) AND t.agent_id <> ALL (v_locked)
                ORDER BY t.agent_id FOR NO KEY UPDATE);
        ELSE
            v_locked := v_locked || ARRAY(
                SELECT t.agent_id FROM agent_streams t
                WHERE t.agent_id = ANY (v_missing)
                ORDER BY t.agent_id FOR NO KEY UPDATE SKIP LOCKED);
        END IF;
    END IF;

    -- Step 3: judge the limits, under the locks. Room is counted only where it may be short.
    SELECT coalesce(array_agg(f.agent_id), '{}'), coalesce(array_agg(f.room), '{}')
    FROM (SELECT t.agent_id,
                 c_limit - presenced_count_waiting(t.agent_id, t.epoch, c_limit::integer) AS room
          FROM agent_streams t,
               (SELECT p.agent_id, count(*) AS wanted FROM unnest(agent_ids) AS p (agent_id)
                GROUP BY 1) n
          WHERE t.agent_id = ANY (v_locked) AND n.agent_id = t.agent_id
            AND t.counted + t.top - t.counted_at + n.wanted > c_limit) f
    INTO v_full, v_rooms;

    -- Step 4: number and write, in one statement whose snapshot is younger than the locks.
    RETURN QUERY
    WITH o AS MATERIALIZED (
        SELECT e.*, v_errors[e.ord] AS fault, v_lives[e.ord] AS live
        FROM unnest(agent_ids, payloads, ttls, to_sessions, keys, sender_tokens, sender_agents,
                    sender_sessions) WITH ORDINALITY
             AS e (agent_id, payload, ttl, to_session, key, token, agent, session, ord)),
    looked AS MATERIALIZED (
        SELECT o.*, first.seq AS first_seq, first.payload::text = o.payload::text AS is_same,
               CASE WHEN o.fault IS NOT NULL THEN 'refused'
                    WHEN (o.agent_id = ANY (v_locked)) IS NOT TRUE THEN 'absent'
                    WHEN first.seq IS NOT NULL THEN 'duplicate'
                    WHEN only_if = 'reachable' AND NOT v_known THEN 'unknown'
                    WHEN only_if = 'reachable' AND o.live = 0 THEN 'unreachable'
                    ELSE 'sent' END AS first_verdict
        FROM o LEFT JOIN LATERAL (
            SELECT d.seq, d.payload FROM dispatches d
            WHERE d.agent_id = o.agent_id AND d.key = o.key OFFSET 0) first ON true),
    -- A key that stands twice in the batch is written once.
    judged AS MATERIALIZED (
        SELECT l.*, CASE WHEN l.first_verdict = 'sent' AND l.key IS NOT NULL
                          AND row_number() OVER (PARTITION BY l.agent_id, l.key, l.first_verdict
                                                 ORDER BY l.ord) > 1 THEN 'again'
                         ELSE l.first_verdict END AS verdict
        FROM looked l),
    numbered AS MATERIALIZED (
        SELECT j.*, row_number() OVER (PARTITION BY j.agent_id ORDER BY j.ord) AS k
        FROM judged j WHERE j.verdict = 'sent'),
    fitting AS MATERIALIZED (
        SELECT n.* FROM numbered n
        LEFT JOIN unnest(v_full, v_rooms) AS f (agent_id, room) ON f.agent_id = n.agent_id
        WHERE f.room IS NULL OR n.k <= f.room),
    counts AS MATERIALIZED (
        SELECT f.agent_id, count(*) AS n FROM fitting f GROUP BY f.agent_id),
    bumped AS (
        UPDATE agent_streams t
        SET top = t.top + c.n,
            counted = CASE WHEN f.agent_id IS NULL THEN t.counted
                           ELSE c_limit - f.room + c.n END,
            counted_at = CASE WHEN f.agent_id IS NULL THEN t.counted_at ELSE t.top + c.n END
        FROM counts c LEFT JOIN unnest(v_full, v_rooms) AS f (agent_id, room)
                             ON f.agent_id = c.agent_id
        WHERE t.agent_id = c.agent_id AND t.agent_id = ANY (v_locked)
        RETURNING t.agent_id, t.epoch, t.top - c.n AS base),
    written AS (
        INSERT INTO dispatches
               (agent_id, seq, epoch, payload, bytes, to_session, key, sender_kind, sender_token,
                sender_agent, sender_session, sender_role, created_at, expires_at)
        SELECT f.agent_id, b.base + f.k, b.epoch, f.payload, octet_length(f.payload::text),
               f.to_session, f.key, kind, f.token, f.agent, f.session,
               CASE WHEN kind = 'sql' THEN session_user END, t.now,
               t.now + coalesce(f.ttl, interval '5 minutes')
        FROM fitting f JOIN bumped b ON b.agent_id = f.agent_id,
             (SELECT clock_timestamp() AS now) t
        ORDER BY f.agent_id, f.k
        RETURNING agent_id, seq),
    results AS MATERIALIZED (
        SELECT f.ord, b.base + f.k AS seq, f.agent_id, f.key, f.payload
        FROM fitting f JOIN bumped b ON b.agent_id = f.agent_id)
    SELECT j.ord::integer,
           CASE WHEN j.verdict IN ('duplicate', 'unknown', 'unreachable', 'refused')
                    THEN j.verdict
                WHEN j.verdict = 'absent' THEN CASE WHEN a.id IS NULL THEN 'refused'
                                                    ELSE 'busy' END
                WHEN j.verdict = 'again' AND g.ord IS NOT NULL THEN 'duplicate'
                WHEN r.ord IS NOT NULL THEN 'sent'
                ELSE 'refused' END,
           coalesce(r.seq, g.seq, j.first_seq),
           CASE WHEN j.verdict IN ('refused', 'absent') THEN NULL ELSE j.live END,
           v_known,
           CASE WHEN j.verdict = 'refused' THEN left(j.fault, 5)
                WHEN j.verdict = 'absent' AND a.id IS NULL THEN '23503'
                WHEN j.verdict IN ('sent', 'again') AND r.ord IS NULL AND g.ord IS NULL
                    THEN '53400' END,
           CASE WHEN j.verdict = 'refused' THEN substr(j.fault, 7)
                WHEN j.verdict = 'absent' AND a.id IS NULL
                    THEN format('there is no agent %s', j.agent_id)
                WHEN j.verdict IN ('sent', 'again') AND r.ord IS NULL AND g.ord IS NULL
                    THEN format('%s dispatches for agent %s are neither received nor expired',
                                c_limit, j.agent_id) END,
           CASE WHEN j.verdict = 'duplicate' THEN j.is_same
                WHEN j.verdict = 'again' THEN g.payload::text = j.payload::text END
    FROM judged j
    LEFT JOIN results r ON r.ord = j.ord
    LEFT JOIN results g ON j.verdict = 'again' AND g.agent_id = j.agent_id AND g.key = j.key
    LEFT JOIN LATERAL (SELECT x.id FROM agents x WHERE j.verdict = 'absent' AND x.id = j.agent_id
                       OFFSET 0) a ON true
    ORDER BY j.ord;

    IF EXISTS (SELECT FROM agent_streams t WHERE t.agent_id = ANY (v_locked) AND t.top > 0)
       AND NOT EXISTS (SELECT FROM delivery_began) THEN
        INSERT INTO delivery_began DEFAULT VALUES;
    END IF;
END $$;

-- presenced_dispatch() for many, in one transaction; see presenced_dispatch_batch().
CREATE FUNCTION presenced_dispatch_many(
    agent_ids bigint[], payloads json[], ttls interval[] DEFAULT NULL,
    to_sessions text[] DEFAULT NULL, keys text[] DEFAULT NULL, only_if text DEFAULT 'any',
    waits boolean DEFAULT true)
RETURNS TABLE (ord integer, outcome text, seq bigint, sessions integer, known boolean, error text,
               why text)
LANGUAGE sql VOLATILE SECURITY DEFINER AS $$
    SELECT b.ord, b.outcome, b.seq, b.sessions, b.known, b.error, b.why
    FROM presenced_dispatch_batch(agent_ids, payloads, ttls, to_sessions, keys, only_if, waits,
                                  'sql', NULL, NULL, NULL) b
    ORDER BY b.ord
$$;

SELECT presenced_seal('presenced_live_cutoff', 'presenced_live_vouched', 'presenced_coverage',
                      'presenced_is_covered', 'presenced_count_waiting',
                      'presenced_wake_nodes', 'presenced_keep_awake', 'presenced_dispatch',
                      'presenced_dispatch_batch', 'presenced_dispatch_many');
