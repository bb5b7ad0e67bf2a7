-- presenced-oldest-binary: 0.1.0
--
-- Who may read and write delivery. Apps need no right to a table:
--   GRANT EXECUTE ON FUNCTION presenced_dispatch, presenced_dispatch_many, presenced_ack,
--       presenced_reply, presenced_live_cutoff, presenced_live_vouched TO app;
--   GRANT SELECT ON dispatch_receipts, dispatch_status, session_positions, undelivered_dispatches,
--       dispatch_replies TO app;
-- Who installs Solid Cable's trigger needs EXECUTE on presenced_bridge_solid_cable and
-- presenced_bridge_message.

-- A server that runs already goes on: who could do its work before this migration still can. Its
-- mark is the right to write the clock.
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
        EXECUTE format(
            'GRANT SELECT, INSERT, UPDATE, DELETE ON agent_streams, dispatches, received_ranges, '
            'undelivered, dispatch_replies, session_handled, delivery_began, trim_horizons, '
            'presenced_wake, dispatch_inbox, bridge_positions TO %s', v_role);
        EXECUTE format('GRANT SELECT, UPDATE ON delivery_state TO %s', v_role);
        EXECUTE format('GRANT SELECT ON dispatch_receipts, dispatch_status, session_positions, '
                       'undelivered_dispatches TO %s', v_role);
        EXECUTE format(
            'GRANT EXECUTE ON FUNCTION presenced_dispatch, presenced_dispatch_many, '
            'presenced_dispatch_batch, presenced_ack, presenced_reply, presenced_live_cutoff, '
            'presenced_live_vouched, presenced_coverage, presenced_is_covered, '
            'presenced_count_waiting, presenced_keep_awake, presenced_delta, presenced_fetch, '
            'presenced_compare_streams, presenced_begin_epochs, presenced_is_own_cluster, '
            'presenced_add_ranges, presenced_floors, presenced_remembered, '
            'presenced_transition_positions, presenced_renew_positions, presenced_add_replies, '
            'presenced_judge, presenced_trim_dispatches, presenced_parse, presenced_move_inbox, '
            'presenced_bridge_messages, presenced_bridges, presenced_progress TO %s', v_role);
    END LOOP;
END $$;
