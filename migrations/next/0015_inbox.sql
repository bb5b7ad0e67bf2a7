-- presenced-oldest-binary: 0.1.0
--
-- The inbox: broadcasts that an app writes to Solid Cable's table become dispatches, in the app's own
-- transaction, without polling.

-- Wakes the nodes at the commit, as a dispatch does. The condition is the same, so that a transaction
-- which does both notifies once.
CREATE CONSTRAINT TRIGGER dispatch_inbox_wake AFTER INSERT ON dispatch_inbox
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (current_setting('presenced.waking', true) IS DISTINCT FROM pg_current_xact_id()::text
          AND set_config('presenced.waking', pg_current_xact_id()::text, true) IS NOT NULL)
    EXECUTE FUNCTION presenced_wake_nodes();

-- On Solid Cable's table; argument: the channel prefix, or ''. It inserts into the inbox and does
-- nothing else: no counter, no lock, no look at the agent. Whatever goes wrong is a WARNING, and the
-- app's own insert stands. Only a cancel of the app's statement is passed on.
CREATE FUNCTION presenced_bridge_message() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    v_channel text;
    v_agent   text;
    v_why     text;
BEGIN
    -- Most channels are not ours, and cost no savepoint: bytes are compared first.
    IF position('\x6167656e743a757365723a'::bytea IN NEW.channel) = 0 THEN
        RETURN NULL;
    END IF;
    BEGIN
        v_channel := convert_from(NEW.channel, 'UTF8');
        IF TG_ARGV[0] <> '' THEN
            IF NOT starts_with(v_channel, TG_ARGV[0] || ':') THEN
                RETURN NULL;
            END IF;
            v_channel := substr(v_channel, length(TG_ARGV[0]) + 2);
        END IF;
        v_agent := substring(v_channel FROM '^agent:user:([0-9]{1,19})$');
        IF v_agent IS NULL THEN
            RETURN NULL;
        END IF;
        INSERT INTO dispatch_inbox (agent_id, payload, key)
        VALUES (v_agent::bigint, NEW.payload, 'sc:' || NEW.id);
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS v_why = MESSAGE_TEXT;
        RAISE WARNING 'presenced: message % of % is not dispatched: %', NEW.id, TG_RELID::regclass,
            v_why;
    END;
    RETURN NULL;
END $$;

-- Puts the trigger on Solid Cable's table, or puts it there anew with another prefix. Run it as the
-- owner of that table, who needs EXECUTE on this function and on presenced_bridge_message().
--   prefix  Solid Cable's channel_prefix, without the colon
-- Returns what it did. Locks: SHARE ROW EXCLUSIVE on the table, as CREATE TRIGGER does.
CREATE FUNCTION presenced_bridge_solid_cable(cable_table regclass, prefix text DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute a
                   WHERE a.attrelid = cable_table AND a.attname = 'channel'
                     AND a.atttypid = 'bytea'::regtype AND NOT a.attisdropped)
       OR NOT EXISTS (SELECT FROM pg_attribute a
                      WHERE a.attrelid = cable_table AND a.attname = 'payload'
                        AND a.atttypid = 'bytea'::regtype AND NOT a.attisdropped) THEN
        RAISE EXCEPTION '% has no columns channel and payload of type bytea', cable_table
            USING HINT = 'give the table that Solid Cable writes to: solid_cable_messages',
                  ERRCODE = '42809';
    END IF;
    EXECUTE format('CREATE OR REPLACE TRIGGER presenced_bridge AFTER INSERT ON %s FOR EACH ROW '
                   'EXECUTE FUNCTION %I.presenced_bridge_message(%L)',
                   cable_table, current_schema(), coalesce(prefix, ''));
    RETURN format('%s is bridged', cable_table);
END $$;

-- The tables that are bridged, for `presenced status`.
CREATE FUNCTION presenced_bridges()
RETURNS TABLE (cable_table regclass, prefix text, is_enabled boolean)
LANGUAGE sql STABLE AS $$
    SELECT t.tgrelid::regclass, rtrim(convert_from(substr(t.tgargs, 1, length(t.tgargs) - 1), 'UTF8')),
           t.tgenabled <> 'D'
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    WHERE p.proname = 'presenced_bridge_message' AND p.pronamespace = current_schema()::regnamespace
$$;

-- Text as JSON; null when it is none.
CREATE FUNCTION presenced_parse(bytes bytea) RETURNS json
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN convert_from(bytes, 'UTF8')::json;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;

-- Moves the oldest messages of the inbox into the log, in one transaction, in the order in which
-- they came. One node at a time: two would swap the messages of an agent, or write them twice.
--   ttl  of the dispatches: broadcasts are not kept for whoever comes later
-- ran: false when another node moves. moved; refused: no JSON object, no such agent, too large, too
-- many (they are removed, and counted); left_over: agents' streams that somebody holds, for the next
-- round. is_full: go on at once. Locks: streams, without waiting. Cost: 60 us a message.
CREATE FUNCTION presenced_move_inbox(
    row_limit integer DEFAULT 500, ttl interval DEFAULT '60 seconds',
    OUT ran boolean, OUT moved bigint, OUT refused bigint, OUT left_over bigint, OUT is_full boolean)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_ids      bigint[];
    v_agents   bigint[];
    v_payloads json[];
    v_keys     text[];
    v_busy     bigint[];
BEGIN
    ran := false;
    moved := 0;
    refused := 0;
    left_over := 0;
    is_full := false;
    IF NOT pg_try_advisory_xact_lock(
               hashtextextended('presenced inbox ' || current_schema(), 0)) THEN
        RETURN;
    END IF;
    ran := true;
    -- An agent whose stream is held does not stop the others: its messages are passed over, all of
    -- them, so that their order stays.
    v_busy := ARRAY(
        SELECT a.agent_id FROM (SELECT DISTINCT i.agent_id FROM dispatch_inbox i) a
        WHERE EXISTS (SELECT FROM agent_streams t WHERE t.agent_id = a.agent_id)
          AND NOT EXISTS (SELECT FROM agent_streams t WHERE t.agent_id = a.agent_id
                          FOR NO KEY UPDATE SKIP LOCKED));
    SELECT array_agg(i.id), array_agg(i.agent_id), array_agg(i.payload), array_agg(i.key)
    FROM (SELECT m.id, m.agent_id, presenced_parse(m.payload) AS payload, m.key
          FROM dispatch_inbox m WHERE m.agent_id <> ALL (v_busy)
          ORDER BY m.id LIMIT row_limit FOR UPDATE SKIP LOCKED) i
    INTO v_ids, v_agents, v_payloads, v_keys;
    IF v_ids IS NOT NULL THEN
        SELECT count(*) FILTER (WHERE b.outcome IN ('sent', 'duplicate')),
               count(*) FILTER (WHERE b.outcome = 'refused'),
               coalesce(array_agg(v_ids[b.ord]) FILTER (WHERE b.outcome <> 'busy'), '{}')
        FROM presenced_dispatch_batch(v_agents, v_payloads,
                 array_fill(ttl, ARRAY[cardinality(v_ids)]), NULL, v_keys, 'any', false, 'bridge',
                 NULL, NULL, NULL) b
        INTO moved, refused, v_ids;
        DELETE FROM dispatch_inbox i WHERE i.id = ANY (v_ids);
        is_full := cardinality(v_ids) >= row_limit;
    END IF;
    left_over := (SELECT count(*) FROM dispatch_inbox);
END $$;

-- For a bridge that reads Solid Cable in another database: writes what it has read, and how far it
-- is, in one transaction. At least once; the keys, 'sc:' and the id, make it once.
--   at_position  what the bridge took for its position: when it is not (another node has taken over),
--                nothing is written, and `ran` is false
--   position, holes  where it is now
-- Streams that somebody holds are waited for, up to lock_timeout; then everything is rolled back.
-- Errors: those of presenced_dispatch_batch(). Locks: the row of the source, then streams.
CREATE FUNCTION presenced_bridge_messages(
    of_source text, at_position bigint, new_position bigint, new_holes bigint[],
    agent_ids bigint[], payloads bytea[], keys text[], ttl interval DEFAULT '60 seconds',
    OUT ran boolean, OUT moved bigint, OUT refused bigint)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET jit = off AS $$
BEGIN
    moved := 0;
    refused := 0;
    INSERT INTO bridge_positions AS b (source, position, holes)
    VALUES (of_source, new_position, new_holes)
    ON CONFLICT (source) DO UPDATE
    SET position = excluded.position, holes = excluded.holes, at = excluded.at
    WHERE b.position = at_position;
    ran := FOUND;
    IF ran AND cardinality(agent_ids) > 0 THEN
        SELECT count(*) FILTER (WHERE b.outcome IN ('sent', 'duplicate')),
               count(*) FILTER (WHERE b.outcome = 'refused')
        FROM presenced_dispatch_batch(agent_ids, ARRAY(SELECT presenced_parse(p.payload)
                                                       FROM unnest(payloads) AS p (payload)),
                 array_fill(ttl, ARRAY[cardinality(agent_ids)]), NULL, keys, 'any', true, 'bridge',
                 NULL, NULL, NULL) b
        INTO moved, refused;
    END IF;
END $$;

SELECT presenced_seal('presenced_bridge_messages', 'presenced_bridge_message', 'presenced_bridge_solid_cable',
                      'presenced_bridges', 'presenced_parse', 'presenced_move_inbox');
