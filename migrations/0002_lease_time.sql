-- presenced-oldest-binary: 0.1.0
--
-- Lease time: the one definition of live and stale, and the view that readers use.
--
-- Function bodies that are SQL are bound to their tables here and now. A reader may use
-- schema.live_agent_subscriptions whatever search_path it has.

-- A lease is stale when last_seen_at <= cutoff, and live otherwise. '-infinity' says that nothing
-- may be judged: no tick has come yet, or an amnesty runs. In this form the planner inlines it.
CREATE OR REPLACE FUNCTION presenced_stale_cutoff(at timestamptz, c presence_clock)
RETURNS timestamptz
LANGUAGE sql STABLE
RETURN CASE WHEN least(at, c.judge_until) < c.amnesty_until THEN '-infinity'::timestamptz
            ELSE least(at, c.judge_until) - c.stale_after END;

CREATE OR REPLACE FUNCTION presenced_stale_cutoff(at timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
RETURN (SELECT presenced_stale_cutoff(at, c) FROM presence_clock c);

-- The cutoff of whoever removes rows: presenced_transition and presenced_sweep. It differs from
-- the readers' cutoff in one thing: past judge_until nobody is reaped. The tick that is late will
-- begin an amnesty, and a row that is removed before that tick could not be spared by it. A reader
-- removes nothing. For a reader lease time stands still at judge_until.
CREATE OR REPLACE FUNCTION presenced_reap_cutoff(at timestamptz, c presence_clock)
RETURNS timestamptz
LANGUAGE sql STABLE
RETURN CASE WHEN at > c.judge_until THEN '-infinity'::timestamptz
            ELSE presenced_stale_cutoff(at, c) END;

-- Leases that a ticking node vouches for although it could not renew them (see nodes.vouched).
CREATE OR REPLACE FUNCTION presenced_vouched(at timestamptz) RETURNS text[]
LANGUAGE sql STABLE
RETURN ARRAY(SELECT unnest(n.vouched) FROM nodes n
             WHERE n.ticked_at > presenced_stale_cutoff(at));

CREATE OR REPLACE VIEW live_agent_subscriptions AS
    SELECT agent_id, token, session_id, node, last_seen_at, created_at
    FROM agent_subscriptions
    WHERE last_seen_at > (SELECT presenced_stale_cutoff(now()))
       OR token = ANY ((SELECT presenced_vouched(now()))::text[]);

-- False when no node has ticked for stale_after. The flags are then neither on nor off, and
-- readers should treat them as unknown.
CREATE OR REPLACE FUNCTION presence_known() RETURNS boolean
LANGUAGE sql STABLE
RETURN coalesce((SELECT c.ticked_at > now() - c.stale_after AND c.ticked_at < now() + c.stale_after
                 FROM presence_clock c), false);
