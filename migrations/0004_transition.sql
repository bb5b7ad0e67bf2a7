-- presenced-oldest-binary: 0.1.0
--
-- The transition: subscribes and releases, one call a batch, each call its own transaction.

-- Applies a batch of subscribes and releases, reaps what is stale, and sets every flag to what is
-- left, under the agents' row locks. The arrays run in parallel, one element a request:
--   kinds      'acquire', 'unsubscribed' or 'disconnected' (a release, by its reason), 'reconcile'
--              (no change of its own: reap and set the flag; 'settle' is its older name)
--   owner_ids  acquire: the token owner, who must own the agent
--   not_after  acquires that arrive later than this do nothing ('late'): a request that a broken
--              connection delivers after its node gave it up must not make a row
--   waits      false: agents and rows that somebody else holds are passed over ('busy');
--              true: waits for them, up to lock_timeout
-- outcomes: 'acquired' 'refused' 'late' | 'released' 'gone' | 'reconciled' | 'busy'.
-- flips: 'agent_id on|off reason' for each flag that changed. reaped: stale rows removed.
--
-- Every statement takes its own snapshot. It sees what others committed while this call waited for
-- the locks. One statement with CTEs would not (PostgreSQL 13.2.1, Read Committed). The function
-- has to run in READ COMMITTED for that.
--
-- Speed is in the plans. The plans are generic: planning again for every call takes longer than
-- the call. A generic plan is made once, perhaps while the tables are empty, and must not turn into
-- a scan when the tables fill up. So every statement reaches a table by = ANY over one index or by
-- a parameterised LATERAL, never by a join whose sides the planner may swap. JIT is off, because
-- wrong estimates switch it on.
--
-- For one request, starting and ending the statements takes longer than what they do. So a lone
-- subscribe or release takes the same steps under the same locks in four statements without arrays.
-- It has only the ordinary case: nobody holds the agent or the row, nothing is stale. Whatever it
-- does not have is left to the statements for a batch, which find what is done already.
CREATE OR REPLACE FUNCTION presenced_transition(
    kinds text[], agent_ids bigint[], tokens text[], session_ids text[], owner_ids bigint[],
    node_name text, not_after timestamptz, waits boolean,
    OUT at timestamptz, OUT outcomes text[], OUT flips text[], OUT reaped bigint)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_now         timestamptz;
    v_lone        record;               -- of a lone request: its agent and the clock
    v_oldest      timestamptz;          -- of the agent's other rows
    v_is_on       boolean;
    v_is_deleted  boolean := false;     -- the row of a lone release
    v_is_done     boolean := false;     -- steps 1 to 6 of a lone request
    v_requests    bigint;
    v_acquires    bigint;
    v_inserted    bigint;
    v_cutoff      timestamptz;
    v_locked      bigint[];             -- agents, and their flags
    v_flags       boolean[];
    v_paid_until  timestamptz;          -- the latest of those that are off
    v_flip_every  interval;
    v_flip_burst  integer;
    v_spent       bigint[];             -- agents whose bucket is empty
    v_leaving     text[];               -- tokens of this batch
    v_acquired    text[];
    v_released    text[];
    v_held        text[];
    v_vouched     text[];
    v_stale       text[];               -- tokens that are reaped, and their agents
    v_expired     bigint[];
    v_has_stale   boolean;
    v_wrong       bigint[];             -- agents whose flag has to flip
    v_flipped     bigint[];             -- agents, new flags, reasons
    v_directions  boolean[];
    v_reasons     text[];
    v_busy_agents bigint[];
    v_ignored     text;
BEGIN
    flips := '{}';
    reaped := 0;
    v_ignored := set_config('presenced.writer', 'on', true); -- see 0006_sweep.sql

    -- Steps 1 to 6, for a lone request. The agent's other rows are looked at in the statement that
    -- writes: nobody else changes them while the agent is locked, but for their last_seen_at.
    IF cardinality(kinds) = 1 AND NOT waits THEN
        SELECT a.routing_active, a.owner_id, a.flips_paid_until, c AS clock
        FROM agents a, presence_clock c WHERE a.id = agent_ids[1]
        FOR NO KEY UPDATE OF a SKIP LOCKED INTO v_lone;
        v_now := clock_timestamp();
        IF kinds[1] = 'acquire' THEN
            INSERT INTO agent_subscriptions
                   (agent_id, token, session_id, node, last_seen_at, created_at)
            SELECT agent_ids[1], tokens[1], session_ids[1], node_name, v_now, v_now
            WHERE v_now <= not_after AND v_lone.owner_id = owner_ids[1]
              AND (v_lone.routing_active
                   OR (v_lone.flips_paid_until > v_now + (v_lone.clock).flip_every
                                                 * ((v_lone.clock).flip_burst - 2)) IS NOT TRUE)
              AND (SELECT s.agent_id FROM agent_subscriptions s WHERE s.token = tokens[1]) IS NULL
            ON CONFLICT (token) DO NOTHING
            RETURNING (SELECT min(s.last_seen_at) FROM agent_subscriptions s
                       WHERE s.agent_id = agent_ids[1])
            INTO v_oldest;
            v_is_done := FOUND;
        ELSIF kinds[1] IN ('unsubscribed', 'disconnected') THEN
            DELETE FROM agent_subscriptions d
            WHERE d.token = (SELECT s.token FROM agent_subscriptions s
                             WHERE s.token = tokens[1] AND s.agent_id = agent_ids[1]
                               AND v_lone.routing_active IS NOT NULL
                             FOR UPDATE SKIP LOCKED)
            RETURNING (SELECT min(s.last_seen_at) FROM agent_subscriptions s
                       WHERE s.agent_id = agent_ids[1] AND s.token <> tokens[1])
            INTO v_oldest;
            v_is_done := FOUND;
            v_is_deleted := v_is_done;
        END IF;
        IF v_oldest <= presenced_reap_cutoff(v_now, v_lone.clock) THEN
            v_is_done := false;
        END IF;
    END IF;
    IF v_is_done THEN
        at := v_now;
        outcomes := ARRAY[CASE WHEN v_is_deleted THEN 'released' ELSE 'acquired' END];
        IF v_lone.routing_active <> (v_oldest IS NOT NULL OR NOT v_is_deleted) THEN
            UPDATE agents a
            SET routing_active = NOT a.routing_active, routing_changed_at = v_now,
                flips_paid_until = CASE
                    WHEN a.routing_active THEN a.flips_paid_until
                    ELSE least(greatest(a.flips_paid_until, v_now)
                                   + (v_lone.clock).flip_every * 2,
                               v_now + (v_lone.clock).flip_every * (v_lone.clock).flip_burst) END
            WHERE a.id = agent_ids[1]
            RETURNING a.routing_active INTO v_is_on;
            IF FOUND THEN
                v_flipped := agent_ids;
                v_directions := ARRAY[v_is_on];
                v_reasons := ARRAY[CASE WHEN NOT v_is_on THEN kinds[1]
                                        WHEN v_is_deleted THEN 'reconciled'
                                        ELSE 'subscribed' END];
            END IF;
        END IF;
    ELSE
        v_requests := cardinality(kinds);
        v_acquires := cardinality(array_positions(kinds, 'acquire'));
        v_inserted := 0;
        v_spent := '{}';
        v_acquired := '{}';
        v_released := '{}';
        v_held := '{}';
        v_expired := '{}';
        v_busy_agents := '{}';

        -- Step 1: lock the agents by id.
        -- NO KEY UPDATE does not block the foreign-key check of an insert by somebody else. The
        -- flag is that of the version which was locked, newer than the snapshot if need be, and
        -- nobody can change it before this transaction ends.
        IF waits THEN
            SELECT array_agg(l.id), array_agg(l.routing_active),
                   max(l.flips_paid_until) FILTER (WHERE NOT l.routing_active)
            FROM (SELECT a.id, a.routing_active, a.flips_paid_until FROM agents a
                  WHERE a.id = ANY (agent_ids) ORDER BY a.id FOR NO KEY UPDATE) l
            INTO v_locked, v_flags, v_paid_until;
        ELSE
            SELECT array_agg(l.id), array_agg(l.routing_active),
                   max(l.flips_paid_until) FILTER (WHERE NOT l.routing_active)
            FROM (SELECT a.id, a.routing_active, a.flips_paid_until FROM agents a
                  WHERE a.id = ANY (agent_ids) ORDER BY a.id FOR NO KEY UPDATE SKIP LOCKED) l
            INTO v_locked, v_flags, v_paid_until;
        END IF;

        -- Step 2: read the clock, once, after the locks.
        -- Several readings, or statement_timestamp(), which is from before the wait, would
        -- contradict each other at the edge of stale_after.
        v_now := clock_timestamp();
        at := v_now;
        SELECT presenced_reap_cutoff(v_now, c), c.flip_every, c.flip_burst
        FROM presence_clock c INTO v_cutoff, v_flip_every, v_flip_burst;
        -- What is paid for longer than a whole bucket was paid by a clock that was ahead, and counts
        -- for nothing.
        IF v_acquires > 0 AND v_paid_until > v_now + v_flip_every * (v_flip_burst - 2) THEN
            v_spent := ARRAY(SELECT a.id FROM agents a
                             WHERE a.id = ANY (v_locked) AND NOT a.routing_active
                               AND a.flips_paid_until > v_now + v_flip_every * (v_flip_burst - 2)
                               AND a.flips_paid_until <= v_now + v_flip_every * v_flip_burst);
        END IF;

        -- Step 3: insert.
        -- Inserts come before deletes, or a flag would flap when a session moves within one batch.
        IF v_acquires > 0 AND v_now <= not_after AND v_locked IS NOT NULL THEN
            INSERT INTO agent_subscriptions
                   (agent_id, token, session_id, node, last_seen_at, created_at)
            SELECT o.agent_id, o.token, o.session_id, node_name, v_now, v_now
            FROM unnest(kinds, agent_ids, tokens, session_ids, owner_ids)
                 AS o (kind, agent_id, token, session_id, owner_id),
                 LATERAL (SELECT a.owner_id FROM agents a WHERE a.id = o.agent_id OFFSET 0) a
            WHERE o.kind = 'acquire' AND o.agent_id = ANY (v_locked) AND a.owner_id = o.owner_id
              AND o.agent_id <> ALL (v_spent)
              -- ON CONFLICT would do, but it waits for whoever is updating the row it finds. It is
              -- left with a token that stands twice in one batch.
              AND (SELECT s.agent_id FROM agent_subscriptions s WHERE s.token = o.token) IS NULL
            ON CONFLICT (token) DO NOTHING;
            GET DIAGNOSTICS v_inserted = ROW_COUNT;
            IF v_inserted = v_requests THEN
                v_acquired := tokens;
            ELSE
                v_acquired := ARRAY(SELECT o.token FROM unnest(kinds, tokens) AS o (kind, token)
                                    WHERE o.kind = 'acquire');
            END IF;
            -- A retry after an unknown outcome finds its own row: it holds, and is as good as new.
            -- A row that is locked just now is a row, and its renewal follows.
            IF v_inserted < v_acquires THEN
                v_acquired := ARRAY(SELECT s.token FROM agent_subscriptions s
                                    WHERE s.token = ANY (v_acquired)
                                      AND s.agent_id = ANY (v_locked));
                UPDATE agent_subscriptions s SET last_seen_at = v_now
                WHERE s.token = ANY (ARRAY(
                          SELECT f.token FROM agent_subscriptions f
                          WHERE f.token = ANY (v_acquired) AND f.last_seen_at < v_now
                          ORDER BY f.token FOR NO KEY UPDATE SKIP LOCKED));
            END IF;
        END IF;

        -- Step 4: lock the rows of the releases by token, and delete them.
        -- DELETE itself goes in heap order and would deadlock with a renewal, which goes in key
        -- order.
        IF v_acquires < v_requests AND v_locked IS NOT NULL THEN
            v_leaving := ARRAY(SELECT o.token FROM unnest(kinds, tokens) AS o (kind, token)
                               WHERE o.kind IN ('unsubscribed', 'disconnected'));
            IF v_is_deleted THEN
                v_released := tokens;
            ELSIF waits THEN
                v_released := ARRAY(SELECT s.token FROM agent_subscriptions s
                                    WHERE s.token = ANY (v_leaving) AND s.agent_id = ANY (v_locked)
                                    ORDER BY s.token FOR UPDATE);
            ELSE
                v_released := ARRAY(SELECT s.token FROM agent_subscriptions s
                                    WHERE s.token = ANY (v_leaving) AND s.agent_id = ANY (v_locked)
                                    ORDER BY s.token FOR UPDATE SKIP LOCKED);
            END IF;
            IF cardinality(v_released) > 0 AND NOT v_is_deleted THEN
                DELETE FROM agent_subscriptions s WHERE s.token = ANY (v_released);
            END IF;
            IF cardinality(v_released) < cardinality(v_leaving) THEN
                v_held := ARRAY(SELECT s.token FROM agent_subscriptions s
                                WHERE s.token = ANY (v_leaving) AND s.agent_id = ANY (v_locked));
            END IF;
        END IF;

        -- Step 5: lock the rows that are stale by token, and delete them.
        -- One look at what is left says which flags are wrong and whether there is anything to
        -- reap. While nothing may be judged, as in the storm after an outage, a look at one row is
        -- enough.
        IF v_cutoff > '-infinity' THEN
            SELECT array_agg(l.id) FILTER (WHERE l.active <> (r.oldest IS NOT NULL)),
                   bool_or(r.oldest <= v_cutoff)
            FROM unnest(v_locked, v_flags) AS l (id, active),
                 LATERAL (SELECT min(s.last_seen_at) AS oldest FROM agent_subscriptions s
                          WHERE s.agent_id = l.id) r
            INTO v_wrong, v_has_stale;
        END IF;
        IF v_has_stale THEN
            -- A stale row that somebody holds is never waited for: it may be in the middle of a
            -- renewal. A row renewed meanwhile is checked again when it is locked, and left alone.
            v_vouched := presenced_vouched(v_now);
            SELECT coalesce(array_agg(d.token), '{}'), coalesce(array_agg(d.agent_id), '{}')
            FROM (SELECT s.token, s.agent_id FROM agent_subscriptions s
                  WHERE s.agent_id = ANY (v_locked) AND s.last_seen_at <= v_cutoff
                    AND s.token <> ALL (v_vouched)
                  ORDER BY s.token FOR UPDATE SKIP LOCKED) d
            INTO v_stale, v_expired;
            reaped := cardinality(v_stale);
            IF reaped > 0 THEN
                DELETE FROM agent_subscriptions s WHERE s.token = ANY (v_stale);
            END IF;
        END IF;
        IF reaped > 0 OR (v_cutoff > '-infinity') IS NOT TRUE THEN
            SELECT array_agg(l.id)
            FROM unnest(v_locked, v_flags) AS l (id, active),
                 LATERAL (SELECT count(*) AS rows FROM (
                              SELECT FROM agent_subscriptions s WHERE s.agent_id = l.id
                              LIMIT 1) one) r
            WHERE l.active <> (r.rows > 0)
            INTO v_wrong;
        END IF;

        IF v_wrong IS NOT NULL THEN
            -- Step 6: set each flag to "has rows" where the two differ.
            WITH flipped AS (
                UPDATE agents a
                SET routing_active = NOT a.routing_active, routing_changed_at = v_now,
                    flips_paid_until = CASE
                        WHEN a.routing_active THEN a.flips_paid_until
                        ELSE least(greatest(a.flips_paid_until, v_now) + v_flip_every * 2,
                                   v_now + v_flip_every * v_flip_burst) END
                WHERE a.id = ANY (v_wrong)
                RETURNING a.id, a.routing_active AS active),
            cause AS (
                SELECT o.agent_id, bool_or(o.kind = 'acquire') AS acquired,
                       max(o.kind) FILTER (WHERE o.kind <> 'acquire') AS release
                FROM unnest(kinds, agent_ids, tokens) AS o (kind, agent_id, token)
                JOIN (SELECT unnest(v_acquired) AS token, true AS acquired
                      UNION ALL SELECT unnest(v_released), false) d
                  ON d.token = o.token AND d.acquired = (o.kind = 'acquire')
                GROUP BY o.agent_id)
            SELECT array_agg(f.id), array_agg(f.active), array_agg(
                       CASE WHEN f.active AND c.acquired THEN 'subscribed'
                            WHEN f.active THEN 'reconciled'
                            WHEN c.release IS NOT NULL THEN c.release
                            WHEN f.id = ANY (v_expired) THEN 'expired'
                            ELSE 'reconciled' END)
            FROM flipped f LEFT JOIN cause c ON c.agent_id = f.id
            INTO v_flipped, v_directions, v_reasons;
        END IF;
    END IF;

    IF v_flipped IS NOT NULL THEN
        -- Step 7: log and notify the flips.
        -- The log can stop nothing: whatever fails here fails for the log alone. Nobody waits for a
        -- log that somebody holds as long as for a row; the agents of this batch stay locked.
        BEGIN
            v_ignored := set_config('lock_timeout', '200ms', true);
            IF v_is_done THEN
                INSERT INTO routing_transitions (agent_id, active, reason, at)
                VALUES (v_flipped[1], v_is_on, v_reasons[1], v_now);
                flips := ARRAY[presenced_notify_flip(v_flipped[1], v_is_on, v_reasons[1], v_now)];
            ELSE
                WITH logged AS (
                    INSERT INTO routing_transitions (agent_id, active, reason, at)
                    SELECT f.agent_id, f.active, f.reason, v_now
                    FROM unnest(v_flipped, v_directions, v_reasons)
                         AS f (agent_id, active, reason))
                SELECT array_agg(presenced_notify_flip(f.agent_id, f.active, f.reason, v_now))
                FROM unnest(v_flipped, v_directions, v_reasons) AS f (agent_id, active, reason)
                INTO flips;
            END IF;
            -- What somebody's deferred trigger on the log has to say, it says here, and not at
            -- commit, where it would cost the flip.
            SET CONSTRAINTS ALL IMMEDIATE;
        EXCEPTION WHEN OTHERS OR query_canceled THEN
            PERFORM presenced_log_in_parts(v_flipped, v_directions, v_reasons, v_now,
                                           SQLSTATE, SQLERRM);
            SELECT array_agg(presenced_notify_flip(f.agent_id, f.active, f.reason, v_now))
            FROM unnest(v_flipped, v_directions, v_reasons) AS f (agent_id, active, reason)
            INTO flips;
        END;
    END IF;

    -- Step 8: say what became of each request.
    IF v_is_done THEN
        NULL; -- said above
    ELSIF v_inserted = v_requests THEN
        outcomes := array_fill('acquired'::text, ARRAY[v_requests::integer]);
    ELSIF cardinality(v_released) = v_requests THEN
        outcomes := array_fill('released'::text, ARRAY[v_requests::integer]);
    ELSE
        -- An agent that was not obtained is either gone or held by somebody else.
        IF EXISTS (SELECT FROM unnest(agent_ids) AS o (id)
                   WHERE (o.id = ANY (v_locked)) IS NOT TRUE) THEN
            v_busy_agents := ARRAY(SELECT a.id FROM agents a WHERE a.id = ANY (agent_ids)
                                     AND (a.id = ANY (v_locked)) IS NOT TRUE);
        END IF;
        SELECT array_agg(
            CASE WHEN b.id IS NOT NULL THEN 'busy'
                 WHEN r.outcome IS NOT NULL THEN r.outcome
                 -- A release whose acquire waits beside it must not get ahead of it.
                 WHEN o.agent_id = ANY (v_spent) AND v_now <= not_after AND EXISTS (
                          SELECT FROM unnest(kinds, tokens, owner_ids) AS w (kind, token, owner_id)
                          JOIN agents a ON a.owner_id = w.owner_id
                          WHERE w.kind = 'acquire' AND w.token = o.token AND a.id = o.agent_id)
                      THEN 'busy'
                 WHEN o.kind = 'reconcile' THEN 'reconciled'
                 WHEN o.kind = 'settle' THEN 'settled'
                 WHEN o.kind <> 'acquire' THEN 'gone'
                 WHEN v_now > not_after THEN 'late'
                 ELSE 'refused' END
            ORDER BY o.position)
        FROM unnest(kinds, agent_ids, tokens) WITH ORDINALITY
             AS o (kind, agent_id, token, position)
        LEFT JOIN unnest(v_busy_agents) AS b (id) ON b.id = o.agent_id
        LEFT JOIN (SELECT unnest(v_acquired) AS token, 'acquired' AS outcome
                   UNION ALL SELECT unnest(v_released), 'released'
                   UNION ALL SELECT unnest(v_held), 'busy') r
               ON r.token = o.token AND (r.outcome = 'acquired') = (o.kind = 'acquire')
        INTO outcomes;
    END IF;

    v_ignored := set_config('presenced.writer', '', true);

    -- NOTIFY's lock is taken at commit. It is one for the whole server, and whoever has it keeps it
    -- until his WAL is flushed and replicated. So a commit may have to stand in line for longer than
    -- this transaction should wait for a row, and must not be given up there with all its work. The
    -- setting lasts until the commit is done.
    IF v_flipped IS NOT NULL THEN
        v_ignored := set_config('lock_timeout', '10s', true);
    END IF;
END $$;
