-- presenced-oldest-binary: 0.1.0
--
-- Renewals, and the ticks that let lease time run.

-- A node's sign that leases could be renewed at this moment; the last statement of a renewal.
-- Takes the renewals' table lock even when there is nothing to renew, so that whatever stops
-- renewals stops ticks too. A tick after a gap (lease time stood still), or after the clock went
-- backwards, gives every lease one stale_after more. It waits for no row: somebody who holds the
-- node's row or the clock's stops neither the renewal nor, in the first case, the tick.
-- Returns when the newest tick landed, whosever; NULL when none ever did. Lease time stands still
-- while that is long ago.
CREATE OR REPLACE FUNCTION presenced_tick(
    node_name text, boot text, node_version text, judge_for interval, vouches text[])
RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_now timestamptz;
BEGIN
    LOCK TABLE agent_subscriptions IN ROW EXCLUSIVE MODE;
    v_now := clock_timestamp();
    PERFORM FROM nodes n WHERE n.node = node_name AND n.boot_id = boot
    FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        UPDATE nodes n SET ticked_at = v_now, vouched = vouches
        WHERE n.node = node_name AND n.boot_id = boot;
    ELSIF NOT EXISTS (SELECT FROM nodes n
                      WHERE n.node = node_name AND n.boot_id = boot) THEN
        -- Not without looking: ON CONFLICT waits for whoever is updating the row it finds.
        INSERT INTO nodes (node, boot_id, version, started_at, ticked_at, vouched)
        VALUES (node_name, boot, node_version, v_now, v_now, vouches)
        ON CONFLICT (node, boot_id) DO NOTHING;
    END IF;
    -- Locked: another node is ticking right now, and its tick is as good as ours; or somebody
    -- holds the row, which shows in the age of the tick before.
    PERFORM FROM presence_clock FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        v_now := clock_timestamp();
        UPDATE presence_clock c
        SET ticked_at = v_now,
            judge_until = v_now + judge_for,
            amnesty_until = CASE WHEN v_now > c.judge_until OR v_now < c.ticked_at
                                 THEN v_now + c.stale_after
                                 ELSE least(c.amnesty_until, v_now + c.stale_after) END;
    END IF;
    -- Somebody may have written an infinity there, which is no time to calculate with.
    RETURN (SELECT c.ticked_at FROM presence_clock c WHERE isfinite(c.ticked_at));
END $$;

-- Renews leases by token, all with one reading of the clock, and ticks if judge_for is given.
--   skip_locked  false: waits for a locked row, up to lock_timeout.
--                true: passes over rows that somebody else holds, and returns them in `held`.
-- missing: tokens that have no row any more. A removed row is never brought back.
-- ticked_at: as presenced_tick returns it.
--
-- Rows are locked in the order of their tokens whatever the order of the array: an index scan
-- with = ANY goes through the index from left to right. A bitmap scan would go in heap order, and
-- two renewals, or a renewal and a release, would deadlock.
CREATE OR REPLACE FUNCTION presenced_renew(
    agent_ids bigint[], tokens text[], skip_locked boolean,
    node_name text, boot text, node_version text, judge_for interval, vouches text[],
    OUT at timestamptz, OUT missing text[], OUT held text[], OUT ticked_at timestamptz)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET jit = off AS $$
DECLARE
    v_now     timestamptz := clock_timestamp();
    v_renewed bigint;
    v_free    text[] := tokens;
    v_ignored text;
BEGIN
    at := v_now;
    missing := '{}';
    held := '{}';
    IF cardinality(tokens) > 0 THEN
        IF skip_locked THEN
            v_free := ARRAY(SELECT s.token FROM agent_subscriptions s WHERE s.token = ANY (tokens)
                          ORDER BY s.token FOR NO KEY UPDATE SKIP LOCKED);
        END IF;
        v_ignored := set_config('presenced.writer', 'on', true); -- see 0006_sweep.sql
        UPDATE agent_subscriptions s SET last_seen_at = v_now WHERE s.token = ANY (v_free);
        GET DIAGNOSTICS v_renewed = ROW_COUNT;
        v_ignored := set_config('presenced.writer', '', true);
        IF v_renewed < cardinality(tokens) THEN
            SELECT coalesce(array_agg(o.token) FILTER (WHERE s.agent_id IS NULL), '{}'),
                   coalesce(array_agg(o.token) FILTER (
                       WHERE s.agent_id IS NOT NULL AND o.token <> ALL (v_free)), '{}')
            FROM unnest(agent_ids, tokens) AS o (agent_id, token)
            LEFT JOIN LATERAL (SELECT f.agent_id FROM agent_subscriptions f
                               WHERE f.token = o.token AND f.agent_id = o.agent_id OFFSET 0) s
                   ON true
            INTO missing, held;
        END IF;
    END IF;
    IF judge_for IS NOT NULL THEN
        ticked_at := presenced_tick(node_name, boot, node_version, judge_for, vouches);
    END IF;
END $$;
