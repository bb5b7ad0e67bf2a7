-- presenced-oldest-binary: 0.1.0
--
-- Delivery: the tables. A dispatch is a JSON object for the sessions of one agent. The stream of an
-- agent is its dispatches in the order of their commits: seq 1, 2, 3 ... without holes, within an
-- epoch.
--
-- Lock order, everywhere: agents by id, then agent_streams by agent_id, then agent_subscriptions by
-- token, then nodes, then presence_clock. A transition never locks agent_streams. A dispatch never
-- locks agents.
--
-- The binary from before this migration goes on. Its leases have no `started`: they are not
-- delivered to.

DO $$ BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'the encoding of database % is %, and delivery needs UTF8',
            current_database(), current_setting('server_encoding')
            USING HINT = 'payloads are kept byte for byte: dump, CREATE DATABASE ... ENCODING UTF8 '
                         'TEMPLATE template0, and restore';
    END IF;
END $$;

-- Gives functions of this schema their search_path, and takes EXECUTE from PUBLIC. A function that
-- runs with its owner's rights must find its tables in this schema whatever search_path the caller
-- has: a temporary view of the caller's would run with the owner's rights otherwise. A function with
-- its caller's rights, whose body is bound to its tables when it is made (RETURN ...), needs none.
CREATE FUNCTION presenced_seal(VARIADIC names text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_function regprocedure;
    v_needs_path boolean;
BEGIN
    FOR v_function, v_needs_path IN
        SELECT p.oid::regprocedure, p.prosqlbody IS NULL OR p.prosecdef FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = current_schema()::regnamespace AND p.proname = ANY (names)
    LOOP
        IF v_needs_path THEN
            EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp',
                           v_function, current_schema());
        END IF;
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', v_function);
    END LOOP;
END $$;
REVOKE EXECUTE ON FUNCTION presenced_seal FROM PUBLIC;

-- Eight characters, 48 random bits.
CREATE FUNCTION presenced_new_epoch() RETURNS text
LANGUAGE sql VOLATILE
RETURN translate(encode(substr(uuid_send(gen_random_uuid()), 1, 6), 'base64'), '+/', '-_');

-- One row an agent. `top` is the newest seq. At most counted + (top - counted_at) dispatches are
-- neither received nor expired; the limit of an agent is judged by that sum, and what waits is
-- counted only when the sum reaches the limit. No column but the key stands in an index, so that an
-- update is HOT.
CREATE TABLE agent_streams (
    agent_id   bigint PRIMARY KEY REFERENCES agents ON DELETE CASCADE,
    epoch      text   NOT NULL DEFAULT presenced_new_epoch(),
    top        bigint NOT NULL DEFAULT 0,
    counted    bigint NOT NULL DEFAULT 0,
    counted_at bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 20);

-- Rows are inserted and deleted, and never updated but where the log itself went back (see
-- presenced_begin_epochs). There is no foreign key: the row of the stream, which a dispatch locks,
-- is the proof that the agent is there, and a trigger on agent_streams deletes with it.
CREATE TABLE dispatches (
    agent_id       bigint NOT NULL,
    seq            bigint NOT NULL,
    epoch          text   NOT NULL,
    xid            xid8   NOT NULL DEFAULT pg_current_xact_id(),
    payload        json   NOT NULL,   -- not jsonb: the bytes stay as they were written
    bytes          integer NOT NULL,  -- of the payload
    to_session     text,
    key            text,
    sender_kind    text NOT NULL DEFAULT 'sql'
                   CHECK (sender_kind IN ('sql', 'http', 'session', 'broadcast', 'bridge')),
    sender_token   bigint,
    sender_agent   bigint,
    sender_session text,
    sender_role    text,              -- sender_kind 'sql': the session_user of PostgreSQL
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at     timestamptz NOT NULL,
    PRIMARY KEY (agent_id, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE INDEX dispatches_xid ON dispatches (xid);             -- the delta, and trimming
CREATE INDEX dispatches_expiry ON dispatches (expires_at);   -- verdicts
CREATE INDEX dispatches_to ON dispatches (agent_id, to_session, seq) WHERE to_session IS NOT NULL;
CREATE UNIQUE INDEX dispatches_key ON dispatches (agent_id, key) WHERE key IS NOT NULL;

-- The open range of a lease: (started, received] of the epoch. An epoch that is null, or not the
-- stream's, says that nothing was received in the stream's epoch: the range is (0, 0].
--   started   null: the lease is of a node that does not deliver
--   floor     at or below it only what is addressed to the session is for it
--   heard_at  when the node last had evidence of the client
--   shared    two processes use this session_id at the same time
-- A row has started = 0 when the transaction that makes it has set presenced.starts, and null
-- otherwise. So a binary that knows nothing of delivery makes rows that are not delivered to, and a
-- lease of an agent that was never dispatched to costs no second write.
ALTER TABLE agent_subscriptions
    ADD COLUMN started  bigint DEFAULT nullif(current_setting('presenced.starts', true), '')::bigint,
    ADD COLUMN received bigint,
    ADD COLUMN handled  bigint,
    ADD COLUMN epoch    text,
    ADD COLUMN floor    bigint,
    ADD COLUMN heard_at timestamptz,
    ADD COLUMN shared   boolean NOT NULL DEFAULT false;

ALTER TABLE nodes ADD COLUMN delivers boolean NOT NULL DEFAULT false;

-- Closed ranges. A lease that ends leaves one, an empty one if nothing was received: it says where
-- the session goes on. Every jump leaves one. A session without a name leaves those that are not
-- empty. Rows are inserted as they come; presenced_trim_dispatches() merges those that touch.
CREATE TABLE received_ranges (
    agent_id    bigint NOT NULL,
    epoch       text   NOT NULL,
    session_id  text,
    token       text COLLATE "C" NOT NULL,
    node        text   NOT NULL DEFAULT '',
    started     bigint NOT NULL,
    received    bigint NOT NULL CHECK (received >= started),
    handled     bigint,
    floor       bigint,
    shared      boolean NOT NULL DEFAULT false,
    created_at  timestamptz NOT NULL,  -- of the lease
    heard_at    timestamptz,
    ended_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    merged      boolean NOT NULL DEFAULT false
);
CREATE INDEX received_ranges_session ON received_ranges (agent_id, session_id);
CREATE INDEX received_ranges_ended ON received_ranges (ended_at);
CREATE INDEX received_ranges_new ON received_ranges (agent_id) WHERE NOT merged;

-- Verdicts: dispatches that expired with no range over them. Kept for 90 days.
CREATE TABLE undelivered (
    agent_id   bigint NOT NULL,
    epoch      text   NOT NULL,
    seq        bigint NOT NULL,
    key        text,
    to_session text,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    judged_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (agent_id, epoch, seq)
);
CREATE INDEX undelivered_judged ON undelivered (judged_at);

-- Answers to dispatches; n counts the answers to one dispatch from 1.
CREATE TABLE dispatch_replies (
    agent_id   bigint NOT NULL,
    epoch      text   NOT NULL,
    seq        bigint NOT NULL,
    n          integer NOT NULL,
    session_id text,
    token      text COLLATE "C",
    body       json   NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (agent_id, epoch, seq, n)
);
CREATE INDEX dispatch_replies_at ON dispatch_replies (at);

-- What a session said by presenced_ack() or presenced_reply(). An app's transaction may hold such a
-- row for long; it holds no lease with it.
CREATE TABLE session_handled (
    agent_id   bigint NOT NULL,
    session_id text   NOT NULL,
    epoch      text   NOT NULL,
    handled    bigint NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (agent_id, session_id)
) WITH (fillfactor = 50);

-- Has a row, or several, once the schema has dispatched. Rows are inserted and never updated: the
-- first transaction that dispatches makes nobody wait.
CREATE TABLE delivery_began (at timestamptz NOT NULL DEFAULT clock_timestamp());

-- One row. `keep`: how long a dispatch may live, and how long a position is remembered.
-- Everything with expires_at <= judged_until that judged_snapshot sees has had its verdict.
-- xid8 values are of one cluster: see presenced_adopt_cluster().
CREATE TABLE delivery_state (
    one               boolean PRIMARY KEY DEFAULT true CHECK (one),
    keep              interval NOT NULL DEFAULT interval '24 hours' CHECK (keep > interval '0'),
    system_identifier bigint NOT NULL,
    judged_until      timestamptz NOT NULL DEFAULT '-infinity',
    judged_snapshot   pg_snapshot NOT NULL DEFAULT pg_current_snapshot()
) WITH (fillfactor = 20);

-- Every transaction that had an xid at noted_at has one below `bound`. One row a minute.
CREATE TABLE trim_horizons (noted_at timestamptz PRIMARY KEY, bound xid8 NOT NULL);

-- Messages of others on their way into the log: see 0015_inbox.sql. An app's transaction inserts
-- here, and takes no lock that anybody waits for.
CREATE TABLE dispatch_inbox (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    agent_id   bigint NOT NULL,
    payload    bytea  NOT NULL,
    key        text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- How far a bridge is that reads another database: ids up to `position` are in the log, but for
-- `holes`, which were not there yet.
CREATE TABLE bridge_positions (
    source   text PRIMARY KEY,
    position bigint NOT NULL,
    holes    bigint[] NOT NULL DEFAULT '{}',
    at       timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- Until awake_until, and a second longer, every node polls: a commit need not notify.
CREATE TABLE presenced_wake (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    awake_until timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 10);
INSERT INTO presenced_wake DEFAULT VALUES;

-- The cluster's identifier; one that was initialised anew, or restored into, has another.
CREATE FUNCTION presenced_system_identifier() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
RETURN (SELECT c.system_identifier FROM pg_control_system() c);
INSERT INTO delivery_state (system_identifier) VALUES (presenced_system_identifier());

-- ---------------------------------------------------------------------------------------------
-- A stream is made with its agent, and what belongs to it goes with it
-- ---------------------------------------------------------------------------------------------

CREATE FUNCTION presenced_make_streams() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO agent_streams (agent_id) SELECT m.id FROM made m ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER agents_streams_made AFTER INSERT ON agents
    REFERENCING NEW TABLE AS made FOR EACH STATEMENT
    EXECUTE FUNCTION presenced_make_streams();

CREATE FUNCTION presenced_drop_streams() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET enable_seqscan = off AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        -- Not TRUNCATE: it would wait for every transaction that has dispatched, and everybody
        -- behind it.
        DELETE FROM dispatches;
        DELETE FROM received_ranges;
        DELETE FROM undelivered;
        DELETE FROM dispatch_replies;
        DELETE FROM session_handled;
        RETURN NULL;
    END IF;
    DELETE FROM dispatches d WHERE d.agent_id = OLD.agent_id;
    DELETE FROM received_ranges r WHERE r.agent_id = OLD.agent_id;
    DELETE FROM undelivered u WHERE u.agent_id = OLD.agent_id;
    DELETE FROM dispatch_replies r WHERE r.agent_id = OLD.agent_id;
    DELETE FROM session_handled h WHERE h.agent_id = OLD.agent_id;
    RETURN NULL;
END $$;
CREATE TRIGGER agent_streams_dropped AFTER DELETE ON agent_streams FOR EACH ROW
    EXECUTE FUNCTION presenced_drop_streams();
CREATE TRIGGER agent_streams_truncated AFTER TRUNCATE ON agent_streams FOR EACH STATEMENT
    EXECUTE FUNCTION presenced_drop_streams();

-- An agent that comes to another owner begins anew: its leases end, what waits is deleted, and the
-- epoch is a new one. A session never sees a dispatch that was meant for another owner's.
CREATE FUNCTION presenced_change_owner() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET enable_seqscan = off AS $$
DECLARE
    v_tokens text[];
BEGIN
    -- Deleted and inserted: a dispatch that waits for the row finds it gone, and looks again.
    DELETE FROM agent_streams t WHERE t.agent_id = NEW.id;
    v_tokens := ARRAY(SELECT s.token FROM agent_subscriptions s WHERE s.agent_id = NEW.id
                      ORDER BY s.token FOR UPDATE);
    DELETE FROM agent_subscriptions s WHERE s.token = ANY (v_tokens);
    DELETE FROM received_ranges r WHERE r.agent_id = NEW.id;
    INSERT INTO agent_streams (agent_id) VALUES (NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER agents_owner_changed AFTER UPDATE OF owner_id ON agents FOR EACH ROW
    WHEN (NEW.owner_id <> OLD.owner_id)
    EXECUTE FUNCTION presenced_change_owner();

INSERT INTO agent_streams (agent_id) SELECT a.id FROM agents a ON CONFLICT DO NOTHING;

SELECT presenced_seal('presenced_new_epoch', 'presenced_system_identifier',
                      'presenced_make_streams', 'presenced_drop_streams', 'presenced_change_owner');
