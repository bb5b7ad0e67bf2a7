-- presenced-oldest-binary: 0.1.0
--
-- The attendance log, routing_transitions, and what keeps it from stopping presence.
--
-- A flip is true whether or not the log has room for it. Therefore whatever goes wrong with the
-- log ends at the log: the flip commits, NOTIFY goes out, and a WARNING says what is not written.

-- Puts the sequences behind presenced's ids in front of the rows. A sequence falls behind its rows
-- after ALTER SEQUENCE ... RESTART, after logical replication, or after rows came with their ids.
-- of_table: only that table's. Returns the tables whose sequence was behind.
--
-- It runs with the rights of the tables' owner, because setval() needs more than the server's role
-- has. It moves sequences forward only. An id in the last half of bigint is left alone: somebody
-- chose it, and behind it there may soon be no next one. A migration that adds an identity column adds its table here.
CREATE FUNCTION presenced_mend_sequences(of_table text DEFAULT NULL) RETURNS text[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$
DECLARE
    v_table    text;
    v_sequence text;
    v_look     text;
    v_behind   boolean;
    v_mended   text[] := '{}';
BEGIN
    FOREACH v_table IN ARRAY ARRAY['agents', 'access_tokens', 'routing_transitions'] LOOP
        CONTINUE WHEN v_table <> of_table;
        v_sequence := pg_get_serial_sequence(format('%I.%I', current_schema(), v_table), 'id');
        CONTINUE WHEN v_sequence IS NULL;
        v_look := format(
            'SELECT m.id > CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END '
            'FROM %s s, (SELECT max(t.id) AS id FROM %I.%I t WHERE t.id < 4611686018427387904) m',
            v_sequence, current_schema(), v_table);
        EXECUTE v_look INTO v_behind;
        CONTINUE WHEN v_behind IS NOT TRUE;
        -- One at a time: between the look and setval() nobody else may set the sequence.
        PERFORM pg_advisory_xact_lock(
            hashtextextended('presenced sequences ' || current_schema(), 0));
        EXECUTE v_look INTO v_behind;
        IF v_behind THEN
            EXECUTE format('SELECT setval(%L, (SELECT max(t.id) FROM %I.%I t '
                           'WHERE t.id < 4611686018427387904))',
                           v_sequence, current_schema(), v_table);
            v_mended := v_mended || v_table;
        END IF;
    END LOOP;
    RETURN v_mended;
END $$;

DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION presenced_mend_sequences(text) SET search_path = %I, pg_temp',
                   current_schema());
END $$;

-- Writes to the log what could not be written at once, because of `state` and `message`: after the
-- sequence was mended, and else row by row, so that a constraint or a trigger of somebody else's
-- costs those rows only that it refuses. The arrays run in parallel. It never fails. A WARNING says
-- how many rows are missing.
--
-- When it returns, lock_timeout may be shorter than the caller's until the transaction ends.
CREATE FUNCTION presenced_log_in_parts(
    agent_ids bigint[], directions boolean[], reasons text[], happened_at timestamptz,
    state text, message text)
RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_done    integer := 0;
    v_missing integer := 0;
    v_state   text := state;
    v_message text := message;
    v_ignored text;
BEGIN
    IF v_state = '23505' THEN -- unique_violation
        BEGIN
            v_ignored := set_config('lock_timeout', '200ms', true);
            PERFORM presenced_mend_sequences('routing_transitions');
        EXCEPTION WHEN OTHERS OR query_canceled THEN
            GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_message = MESSAGE_TEXT;
        END;
    END IF;
    WHILE v_done < cardinality(agent_ids) LOOP
        -- A lock that is not had in time, or a statement that PostgreSQL ended: the next row would
        -- only take as long again.
        IF v_state IN ('55P03', '57014') THEN
            v_missing := v_missing + cardinality(agent_ids) - v_done;
            EXIT;
        END IF;
        v_done := v_done + 1;
        BEGIN
            v_ignored := set_config('lock_timeout', '200ms', true);
            INSERT INTO routing_transitions (agent_id, active, reason, at)
            VALUES (agent_ids[v_done], directions[v_done], reasons[v_done], happened_at);
            SET CONSTRAINTS ALL IMMEDIATE; -- deferred triggers fail here, or nowhere
        EXCEPTION WHEN OTHERS OR query_canceled THEN
            GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_message = MESSAGE_TEXT;
            v_missing := v_missing + 1;
        END;
    END LOOP;
    IF v_missing > 0 THEN
        RAISE WARNING 'presenced: % flips are not in routing_transitions: % (%)',
            v_missing, v_message, v_state;
    END IF;
END $$;

-- Announces one flip on presenced_routing. Returns it as presenced_transition does: 'agent_id on|off
-- reason'.
--
-- A listener that sleeps in a transaction keeps every notification in PostgreSQL's queue. When the
-- queue is full, COMMIT itself fails. So near the end of the queue flips are not announced any more:
-- a flag that nobody hears of is better than a flag that is wrong.
CREATE FUNCTION presenced_notify_flip(
    agent bigint, is_active boolean, reason text, happened_at timestamptz)
RETURNS text
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_ignored text;
BEGIN
    IF pg_notification_queue_usage() < 0.9 THEN
        -- An assignment and not PERFORM: an expression is evaluated without a statement of its own.
        v_ignored := pg_notify('presenced_routing', format(
            '{"agent_id":%s,"active":%s,"reason":"%s","at":"%s","schema":%s}',
            agent, is_active::text, reason,
            to_char(happened_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            to_json(current_schema()::text)))::text;
    ELSE
        RAISE WARNING 'presenced: a flip of agent % is not notified: the notification queue is '
            'full; a listener that is idle in a transaction keeps it', agent;
    END IF;
    RETURN format('%s %s %s', agent, CASE WHEN is_active THEN 'on' ELSE 'off' END, reason);
END $$;

-- Removes up to row_limit rows that are older than keep_from, and returns how many. Rows that
-- somebody holds are left for later. It never fails: a log that cannot be trimmed stops no sweep.
CREATE FUNCTION presenced_trim_log(keep_from timestamptz, row_limit integer)
RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_short   text;
    v_trimmed bigint;
    v_state   text;
    v_why     text;
BEGIN
    v_short := set_config('lock_timeout', '100ms', true);
    -- The log's alone: a sequence of another table is the business of `migrate`.
    PERFORM presenced_mend_sequences('routing_transitions');
    -- Ids rise with time, so the oldest are at the front of the primary key.
    DELETE FROM routing_transitions t
    WHERE t.id = ANY (ARRAY(
        SELECT r.id FROM routing_transitions r
        WHERE r.id = ANY (ARRAY(SELECT o.id FROM routing_transitions o ORDER BY o.id
                                LIMIT row_limit))
          AND r.at < keep_from
        FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS v_trimmed = ROW_COUNT;
    SET CONSTRAINTS ALL IMMEDIATE;
    RETURN v_trimmed;
EXCEPTION WHEN OTHERS OR query_canceled THEN
    GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_why = MESSAGE_TEXT;
    RAISE WARNING 'presenced: routing_transitions is not trimmed: % (%)', v_why, v_state;
    RETURN 0;
END $$;

-- ---------------------------------------------------------------------------------------------
-- Fairness: one agent cannot fill the log
-- ---------------------------------------------------------------------------------------------
-- Each agent has a bucket of flip_burst flips, and every flip_every one flip comes back. Switching
-- on costs two flips, because it pays for the switching off that follows: who leaves never waits.
-- An acquire that would switch on an agent whose bucket is empty is 'busy', and waits its turn. The
-- log itself is never thinned.
--
-- The bucket is one point in time: up to it, the flips of this agent are paid for. A flip_every of
-- zero switches the bucket off.
ALTER TABLE agents ADD COLUMN flips_paid_until timestamptz;
ALTER TABLE presence_clock
    ADD COLUMN flip_every interval NOT NULL DEFAULT '1 minute' CHECK (flip_every >= interval '0'),
    ADD COLUMN flip_burst integer NOT NULL DEFAULT 120 CHECK (flip_burst >= 2);

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
        EXECUTE format('GRANT SELECT (flips_paid_until), UPDATE (flips_paid_until) ON agents TO %s',
                       v_role);
    END LOOP;
END $$;
