-- presenced-oldest-binary: 0.1.0
--
-- The sweep: it finds what nobody will put right otherwise, and puts it right.
--
-- What has to be put right comes about in three ways, and each has its way to be found:
--   somebody else changes rows or flags    triggers write the agent into sweep_queue
--   leases run out because their node died, or ended with leases left, or because an amnesty ended
--                                          a walk over all rows, at full speed
--   anything else (a trigger that did not fire, a mistake of ours)
--                                          two slow walks, a slice a sweep
-- So a sweep does not grow with the number of rows that are fine. As long as the slow walks get
-- through all rows in a sweep (some 100,000 rows), everything is found in one sweep.

-- ---------------------------------------------------------------------------------------------
-- What is to be looked at
-- ---------------------------------------------------------------------------------------------

-- Agents to be put right. There is no key: a writer never waits for another writer, and an agent
-- may stand here more than once. agent_id is null: all rows have to be walked over at or after `due`.
CREATE TABLE sweep_queue (
    agent_id bigint,
    due      timestamptz NOT NULL DEFAULT '-infinity'
);

-- One row: how far the walks are.
CREATE TABLE sweep_state (
    one          boolean PRIMARY KEY DEFAULT true CHECK (one),
    looked_at    timestamptz NOT NULL DEFAULT '-infinity',
    -- Over the pages of agent_subscriptions. Does the walk go at full speed? When did it begin?
    -- When did the last one begin that came to the end?
    next_page    bigint NOT NULL DEFAULT 0,
    is_urgent    boolean NOT NULL DEFAULT false,
    walk_began   timestamptz NOT NULL DEFAULT '-infinity',
    last_walk    timestamptz NOT NULL DEFAULT '-infinity',
    -- Over the agents, by id.
    last_agent   bigint NOT NULL DEFAULT -9223372036854775808
) WITH (fillfactor = 20);
INSERT INTO sweep_state DEFAULT VALUES;

-- The functions of presenced set presenced.writer while they write. By that they are told from
-- others, who write by hand, or in a trigger of their own below a statement of presenced. These trigger functions run with the
-- rights of the owner, because the others have none to sweep_queue.
CREATE FUNCTION presenced_note_subscription() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO sweep_queue (agent_id) VALUES (NEW.agent_id);
    ELSE
        INSERT INTO sweep_queue (agent_id) VALUES (OLD.agent_id);
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION presenced_note_flag() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO sweep_queue (agent_id) VALUES (NEW.id);
    RETURN NULL;
END $$;
CREATE FUNCTION presenced_note_truncate() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO sweep_queue (agent_id) SELECT a.id FROM agents a WHERE a.routing_active;
    RETURN NULL;
END $$;
-- A node that ends takes its row with it. Leases that it could not release run out later.
CREATE FUNCTION presenced_note_node() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO sweep_queue (due) SELECT clock_timestamp() + c.stale_after FROM presence_clock c;
    RETURN NULL;
END $$;
DO $$
DECLARE
    v_name text;
BEGIN
    FOREACH v_name IN ARRAY ARRAY['subscription', 'flag', 'truncate', 'node'] LOOP
        EXECUTE format('ALTER FUNCTION presenced_note_%s() SET search_path = %I, pg_temp',
                       v_name, current_schema());
    END LOOP;
END $$;

-- In the order of all locks, before a trigger takes one in another.
LOCK TABLE agents, agent_subscriptions, nodes IN SHARE ROW EXCLUSIVE MODE;
CREATE TRIGGER agent_subscriptions_changed AFTER INSERT OR DELETE
    ON agent_subscriptions FOR EACH ROW
    WHEN (pg_trigger_depth() > 0 OR current_setting('presenced.writer', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION presenced_note_subscription();
CREATE TRIGGER agent_subscriptions_aged AFTER UPDATE OF last_seen_at
    ON agent_subscriptions FOR EACH ROW
    WHEN (NEW.last_seen_at < OLD.last_seen_at
          AND (pg_trigger_depth() > 0
               OR current_setting('presenced.writer', true) IS DISTINCT FROM 'on'))
    EXECUTE FUNCTION presenced_note_subscription();
CREATE TRIGGER agent_subscriptions_truncated AFTER TRUNCATE
    ON agent_subscriptions FOR EACH STATEMENT
    EXECUTE FUNCTION presenced_note_truncate();
CREATE TRIGGER agents_flag_made AFTER INSERT ON agents FOR EACH ROW
    WHEN (NEW.routing_active)
    EXECUTE FUNCTION presenced_note_flag();
CREATE TRIGGER agents_flag_changed AFTER UPDATE OF routing_active ON agents FOR EACH ROW
    WHEN (NEW.routing_active <> OLD.routing_active
          AND (pg_trigger_depth() > 0
               OR current_setting('presenced.writer', true) IS DISTINCT FROM 'on'))
    EXECUTE FUNCTION presenced_note_flag();
CREATE TRIGGER nodes_ended AFTER DELETE ON nodes FOR EACH ROW
    EXECUTE FUNCTION presenced_note_node();

-- ---------------------------------------------------------------------------------------------
-- The walks
-- ---------------------------------------------------------------------------------------------

-- Writes agents into the queue, unless they stand there. Returns how many were new.
CREATE FUNCTION presenced_queue_agents(agent_ids bigint[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_nestloop = off SET enable_mergejoin = off
SET jit = off AS $$
DECLARE
    v_new bigint;
BEGIN
    INSERT INTO sweep_queue (agent_id)
    SELECT DISTINCT f.id FROM unnest(agent_ids) AS f (id)
    WHERE NOT EXISTS (SELECT FROM sweep_queue q WHERE q.agent_id = f.id);
    GET DIAGNOSTICS v_new = ROW_COUNT;
    RETURN v_new;
END $$;

-- Walks over the rows in the order of their pages, from first_page on, for as long as may_take
-- (at least one slice). Queues the agents that have rows at or before the cutoff which nobody
-- vouches for. Brings leases back to `judged_at` that are in the future: a clock that was stepped
-- back leaves them, and they would outlive their clients.
-- next_page: where to go on, 0 at the end. queued: agents that were new in the queue.
--
-- Pages, and not an index: the only thing that tells a stale row is last_seen_at, which stands in
-- no index so that renewals stay HOT. A row costs 0.1 to 0.2 us this way.
CREATE FUNCTION presenced_walk_rows(
    first_page bigint, may_take interval, judged_at timestamptz, cutoff timestamptz,
    OUT next_page bigint, OUT queued bigint)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    c_slice   CONSTANT bigint := 256;
    v_pages   bigint := pg_relation_size('agent_subscriptions')
                        / current_setting('block_size')::integer;
    v_until   timestamptz := clock_timestamp() + may_take;
    v_ahead   timestamptz := judged_at + interval '1 second';
    v_vouched text[] := presenced_vouched(judged_at);
    v_from    tid;
    v_to      tid;
    v_stale   bigint[];
    v_agents  bigint[] := '{}';
    v_early   text[];
    v_ignored text;
BEGIN
    next_page := first_page;
    queued := 0;
    LOOP
        v_from := format('(%s,0)', next_page)::tid;
        v_to := format('(%s,0)', next_page + c_slice)::tid;
        SELECT array_agg(s.agent_id) FILTER (WHERE s.last_seen_at <= cutoff),
               array_agg(s.token) FILTER (WHERE s.last_seen_at > v_ahead)
        FROM agent_subscriptions s
        WHERE s.ctid >= v_from AND s.ctid < v_to
          AND (s.last_seen_at > v_ahead
               OR (cutoff > '-infinity' AND s.last_seen_at <= cutoff
                   AND s.token <> ALL (v_vouched)))
        INTO v_stale, v_early;
        IF v_stale IS NOT NULL THEN
            v_agents := v_agents || v_stale;
        END IF;
        IF v_early IS NOT NULL THEN
            v_ignored := set_config('presenced.writer', 'on', true);
            UPDATE agent_subscriptions s SET last_seen_at = judged_at
            WHERE s.token = ANY (ARRAY(
                SELECT f.token FROM agent_subscriptions f
                WHERE f.token = ANY (v_early) AND f.last_seen_at > v_ahead
                ORDER BY f.token FOR NO KEY UPDATE SKIP LOCKED));
            v_ignored := set_config('presenced.writer', '', true);
        END IF;
        next_page := next_page + c_slice;
        IF next_page >= v_pages THEN
            next_page := 0;
            EXIT;
        END IF;
        EXIT WHEN clock_timestamp() >= v_until;
    END LOOP;
    IF cardinality(v_agents) > 0 THEN
        queued := presenced_queue_agents(v_agents);
    END IF;
END $$;

-- Walks over agents by id, behind first_agent, for as long as may_take (at least one slice), and
-- queues those whose flag disagrees with their rows. A slice is one merge of the index of raised
-- flags with the rows in the order of their agents: about 1 us a row, nothing for agents that are
-- off. last_agent: where to go on, the lowest number at the end.
CREATE FUNCTION presenced_walk_flags(
    first_agent bigint, may_take interval, OUT last_agent bigint, OUT queued bigint)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_nestloop = off SET jit = off AS $$
DECLARE
    c_slice  CONSTANT integer := 1000;
    c_lowest CONSTANT bigint := -9223372036854775808;
    c_last   CONSTANT bigint := 9223372036854775807;
    v_until  timestamptz := clock_timestamp() + may_take;
    v_end    bigint;
    v_wrong  bigint[];
    v_agents bigint[] := '{}';
BEGIN
    last_agent := first_agent;
    queued := 0;
    LOOP
        v_end := least(
            coalesce((SELECT a.id FROM agents a WHERE a.routing_active AND a.id > last_agent
                      ORDER BY a.id OFFSET c_slice LIMIT 1), c_last),
            coalesce((SELECT s.agent_id FROM agent_subscriptions s WHERE s.agent_id > last_agent
                      ORDER BY s.agent_id OFFSET c_slice LIMIT 1), c_last));
        SELECT array_agg(DISTINCT coalesce(a.id, s.agent_id))
        FROM (SELECT f.id FROM agents f
              WHERE f.routing_active AND f.id > last_agent AND f.id <= v_end) a
        FULL JOIN (SELECT r.agent_id FROM agent_subscriptions r
                   WHERE r.agent_id > last_agent AND r.agent_id <= v_end) s
               ON s.agent_id = a.id
        WHERE a.id IS NULL OR s.agent_id IS NULL
        INTO v_wrong;
        IF v_wrong IS NOT NULL THEN
            v_agents := v_agents || v_wrong;
        END IF;
        last_agent := v_end;
        IF v_end = c_last THEN
            last_agent := c_lowest;
            EXIT;
        END IF;
        EXIT WHEN clock_timestamp() >= v_until;
    END LOOP;
    IF cardinality(v_agents) > 0 THEN
        queued := presenced_queue_agents(v_agents);
    END IF;
END $$;

-- Both walks, as far as this sweep may go. queued: agents that were new in the queue. is_unfinished:
-- a walk at full speed did not come to its end; it goes on at the next call.
CREATE FUNCTION presenced_look(
    judged_at timestamptz, every interval, OUT queued bigint, OUT is_unfinished boolean)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
    v_state  sweep_state;
    v_clock  presence_clock;
    v_cutoff timestamptz;
    v_wanted timestamptz;
    v_due    timestamptz;
    v_queued  bigint;
BEGIN
    queued := 0;
    is_unfinished := false;
    -- Somebody may hold the row. Then the walks begin at the beginning, and are not remembered.
    SELECT s.* FROM sweep_state s FOR UPDATE SKIP LOCKED INTO v_state;
    IF v_state.one IS NULL THEN
        v_state := (true, '-infinity', 0, false, '-infinity', '-infinity',
                    -9223372036854775808)::sweep_state;
    END IF;
    SELECT c.* FROM presence_clock c INTO v_clock;
    IF v_state.looked_at <= judged_at AND v_state.looked_at + every * 0.9 > judged_at
       AND NOT v_state.is_urgent
       AND NOT EXISTS (SELECT FROM nodes n
                       WHERE n.ticked_at + v_clock.stale_after > v_state.looked_at
                         AND n.ticked_at + v_clock.stale_after <= judged_at) THEN
        RETURN; -- this call only goes on with the queue
    END IF;
    v_cutoff := presenced_reap_cutoff(judged_at, v_clock);

    -- At full speed: until a walk has begun one sweep after the moment in which the last of such
    -- leases ran out. A node renews for a moment after its last tick. Leases that a node renewed
    -- long before its last tick run out earlier: a walk with each sweep of that time leaves few to
    -- the last one.
    v_wanted := '-infinity';
    IF v_cutoff > '-infinity' THEN
        SELECT greatest(v_wanted, max(CASE WHEN n.ticked_at > v_cutoff THEN judged_at
                                           ELSE n.ticked_at + v_clock.stale_after + every END))
        FROM nodes n WHERE n.ticked_at <= v_cutoff + v_clock.stale_after / 3 INTO v_wanted;
        IF v_clock.amnesty_until <= judged_at THEN
            v_wanted := greatest(v_wanted, v_clock.amnesty_until + every);
        END IF;
        SELECT max(q.due) FROM sweep_queue q WHERE q.agent_id IS NULL AND q.due <= judged_at
        INTO v_due;
        v_wanted := greatest(v_wanted, v_due + every);
    END IF;
    -- The clock may have been stepped back where an amnesty begins: leases may be in the future.
    IF v_clock.amnesty_until - v_clock.stale_after <= judged_at THEN
        v_wanted := greatest(v_wanted, v_clock.amnesty_until - v_clock.stale_after);
    END IF;
    IF v_state.last_walk > judged_at THEN
        v_state.last_walk := '-infinity';
    END IF;
    IF NOT v_state.is_urgent AND v_state.last_walk < v_wanted THEN
        v_state.is_urgent := true;
        v_state.next_page := 0;
    END IF;

    -- A walk that is under way when the leases of a dead node have run out begins anew: it passed
    -- rows that had not run out.
    IF v_state.is_urgent
       AND EXISTS (SELECT FROM nodes n
                   WHERE n.ticked_at + v_clock.stale_after > v_state.walk_began
                     AND n.ticked_at + v_clock.stale_after <= judged_at) THEN
        v_state.next_page := 0;
    END IF;

    IF v_state.next_page = 0 THEN
        v_state.walk_began := judged_at;
    END IF;
    SELECT w.next_page, w.queued
    FROM presenced_walk_rows(v_state.next_page,
             CASE WHEN v_state.is_urgent THEN interval '1 second' ELSE interval '15 ms' END,
             judged_at, v_cutoff) w
    INTO v_state.next_page, v_queued;
    queued := queued + v_queued;
    IF v_state.next_page = 0 THEN
        v_state.last_walk := v_state.walk_began;
        v_state.is_urgent := false;
        DELETE FROM sweep_queue q
        WHERE q.ctid = ANY (ARRAY(
            SELECT d.ctid FROM sweep_queue d
            WHERE d.agent_id IS NULL AND d.due + every <= v_state.walk_began
            FOR UPDATE SKIP LOCKED));
    END IF;
    is_unfinished := v_state.is_urgent;

    SELECT w.last_agent, w.queued
    FROM presenced_walk_flags(v_state.last_agent, interval '5 ms') w
    INTO v_state.last_agent, v_queued;
    queued := queued + v_queued;

    UPDATE sweep_state s
    SET looked_at = judged_at, next_page = v_state.next_page, is_urgent = v_state.is_urgent,
        walk_began = v_state.walk_began, last_walk = v_state.last_walk,
        last_agent = v_state.last_agent
    WHERE s.one = (SELECT f.one FROM sweep_state f FOR UPDATE SKIP LOCKED);
END $$;

-- ---------------------------------------------------------------------------------------------
-- The sweep
-- ---------------------------------------------------------------------------------------------

-- One round of the sweep, by whichever node comes first: looks, puts right up to row_limit agents
-- of the queue, and trims what nobody needs any more. Agents and rows that somebody is working on
-- are skipped; a later round takes them again.
--   every   how often a round is wanted, over all nodes
-- next_in: how long until the next round is due (zero: there is more to do, go on at once).
-- flips, reaped: as in presenced_transition. ran: false when another node swept or was sweeping.
--
-- It waits for no row that somebody else holds.
CREATE OR REPLACE FUNCTION presenced_sweep(
    node_name text, boot text, every interval, keep interval, row_limit integer,
    OUT ran boolean, OUT next_in interval, OUT flips text[], OUT reaped bigint)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
    v_now       timestamptz;
    v_keep_from timestamptz;
    v_last      timestamptz;
    v_lapse     timestamptz;
    v_queued     bigint;
    v_is_full   boolean;
    v_entries   tid[];
    v_agents    bigint[];
    v_waiting   bigint;
    v_front     bigint := greatest(10000, 20 * row_limit); -- entries of the queue that are looked at
    v_more      boolean;                                   -- there may be more of them
    v_left      bigint;                                    -- entries that left the queue
    v_busy      bigint[];
    v_trimmed   bigint;
    v_ignored   text;
BEGIN
    ran := false;
    flips := '{}';
    reaped := 0;
    next_in := every;

    -- Step 1: one sweeps at a time, and not more often than `every`.
    -- The lock is held for this transaction only, so that a node that dies or freezes holds nothing.
    IF NOT pg_try_advisory_xact_lock(
               hashtextextended('presenced sweep ' || current_schema(), 0)) THEN
        RETURN;
    END IF;
    v_now := clock_timestamp();
    SELECT max(n.swept_at) FROM nodes n WHERE n.swept_at <= v_now INTO v_last;
    -- The exception: the moment in which the leases of a node that died have run out.
    SELECT min(n.ticked_at + c.stale_after) FROM nodes n, presence_clock c
    WHERE n.ticked_at + c.stale_after > v_last AND n.ticked_at <= v_now INTO v_lapse;
    IF v_last + every * 0.9 > v_now AND (v_lapse <= v_now) IS NOT TRUE THEN
        next_in := least(v_last + every, v_lapse) - v_now;
        RETURN;
    END IF;
    ran := true;

    -- Step 2: look.
    SELECT l.queued, l.is_unfinished FROM presenced_look(v_now, every) l INTO v_queued, v_is_full;
    -- A node that ticked in the future is brought back, or its vouching would outlive it.
    UPDATE nodes n SET ticked_at = v_now
    WHERE (n.node, n.boot_id) IN (SELECT f.node, f.boot_id FROM nodes f
                                  WHERE f.ticked_at > v_now + interval '1 second'
                                  FOR NO KEY UPDATE SKIP LOCKED);
    -- Rounds of one agent follow on rounds that failed. Such a round does not put at stake what it
    -- found.
    IF row_limit <= 1 AND v_queued > 0 THEN
        next_in := interval '0';
        RETURN;
    END IF;

    -- Step 3: take some agents from the queue, and put them right.
    -- Any agents, not the first ones: those may be locked, now and in every later round. They leave
    -- the queue before they are looked at: who changes something after that writes them there anew.
    WITH front AS (
        SELECT q.ctid AS entry, q.agent_id FROM sweep_queue q WHERE q.agent_id IS NOT NULL
        LIMIT v_front),
    chosen AS (
        SELECT f.agent_id FROM front f GROUP BY f.agent_id ORDER BY random() LIMIT row_limit)
    SELECT array_agg(f.entry) FILTER (WHERE c.agent_id IS NOT NULL), array_agg(DISTINCT c.agent_id),
           count(*) FILTER (WHERE c.agent_id IS NULL), count(*) = v_front
    FROM front f LEFT JOIN chosen c ON c.agent_id = f.agent_id
    INTO v_entries, v_agents, v_waiting, v_more;
    v_agents := array_remove(v_agents, NULL);
    IF cardinality(v_agents) > 0 THEN
        -- Entries that somebody holds stay. Their agents are looked at all the same.
        DELETE FROM sweep_queue q
        WHERE q.ctid = ANY (ARRAY(SELECT d.ctid FROM sweep_queue d WHERE d.ctid = ANY (v_entries)
                                  FOR UPDATE SKIP LOCKED));
        GET DIAGNOSTICS v_left = ROW_COUNT;
        SELECT t.flips, t.reaped, ARRAY(
                   SELECT o.agent_id FROM unnest(v_agents, t.outcomes) AS o (agent_id, outcome)
                   WHERE o.outcome = 'busy')
        FROM presenced_transition(array_fill('reconcile'::text, ARRAY[cardinality(v_agents)]),
                 v_agents,
                 array_fill(NULL::text, ARRAY[cardinality(v_agents)]),
                 array_fill(NULL::text, ARRAY[cardinality(v_agents)]),
                 array_fill(NULL::bigint, ARRAY[cardinality(v_agents)]),
                 node_name, v_now, false) t
        INTO flips, reaped, v_busy;
        INSERT INTO sweep_queue (agent_id) SELECT b.id FROM unnest(v_busy) AS b (id);
        -- A full round is followed by another at once, if it got anywhere.
        v_is_full := v_is_full
                     OR ((v_waiting > 0 OR v_more) AND v_left > 0
                         AND cardinality(v_busy) < cardinality(v_agents));
    END IF;

    -- Step 4: trim.
    -- Nothing is trimmed after a gap in the ticks or a step of the clock: one that is months ahead
    -- for a moment would end the whole attendance log.
    SELECT CASE WHEN presenced_reap_cutoff(v_now, c) = '-infinity' THEN '-infinity'
                ELSE v_now - keep END
    FROM presence_clock c INTO v_keep_from;
    v_trimmed := presenced_trim_log(v_keep_from, row_limit);
    DELETE FROM nodes n
    WHERE (n.node, n.boot_id) IN (SELECT o.node, o.boot_id FROM nodes o
                                  WHERE o.ticked_at < v_now - interval '1 day'
                                  FOR UPDATE SKIP LOCKED);

    -- Step 5: say when the next round is due.
    IF v_is_full OR v_trimmed >= row_limit THEN
        next_in := interval '0';
    ELSE
        SELECT least(every, min(n.ticked_at + c.stale_after) - v_now)
        FROM nodes n, presence_clock c
        WHERE n.ticked_at + c.stale_after > v_now AND n.ticked_at <= v_now INTO next_in;
        PERFORM FROM nodes n WHERE n.node = node_name AND n.boot_id = boot
        FOR NO KEY UPDATE SKIP LOCKED;
        IF FOUND THEN
            UPDATE nodes n SET swept_at = v_now WHERE n.node = node_name AND n.boot_id = boot;
        END IF;
    END IF;
    -- As at the end of presenced_transition: the commit may have to stand in line.
    IF cardinality(flips) > 0 THEN
        v_ignored := set_config('lock_timeout', '10s', true);
    END IF;
END $$;

DROP FUNCTION IF EXISTS presenced_astray(timestamptz, text[]);

-- A server that runs already goes on, from this migration on: who may write the clock is a server.
DO $$
DECLARE
    v_role text;
BEGIN
    FOR v_role IN
        SELECT CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END
        FROM pg_class c, aclexplode(c.relacl) g LEFT JOIN pg_roles r ON r.oid = g.grantee
        WHERE c.oid = 'presence_clock'::regclass AND g.privilege_type = 'UPDATE'
          AND g.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON sweep_queue TO %s', v_role);
        EXECUTE format('GRANT SELECT, UPDATE ON sweep_state TO %s', v_role);
    END LOOP;
END $$;
