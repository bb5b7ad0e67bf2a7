-- presenced-oldest-binary: 0.1.0
--
-- Who may call what: a function that writes may be called by those only who were granted it.

DO $$
DECLARE
    v_function regprocedure;
    v_role     text;
BEGIN
    FOR v_function IN
        SELECT p.oid::regprocedure
        FROM pg_proc p
        WHERE p.pronamespace = current_schema()::regnamespace
          AND p.proname IN (
              'presenced_keep_identity', 'presenced_transition', 'presenced_tick',
              'presenced_renew', 'presenced_sweep', 'presenced_mend_sequences',
              'presenced_log_in_parts', 'presenced_notify_flip', 'presenced_trim_log',
              'presenced_note_subscription', 'presenced_note_flag', 'presenced_note_truncate',
              'presenced_note_node', 'presenced_queue_agents', 'presenced_walk_rows',
              'presenced_walk_flags', 'presenced_look', 'presenced_guard_roles')
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', v_function);
    END LOOP;

    -- A server that runs already goes on: who could do its work before this migration still can.
    -- Its mark is the right to write the clock.
    FOR v_role IN
        SELECT CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END
        FROM pg_class c, aclexplode(c.relacl) g LEFT JOIN pg_roles r ON r.oid = g.grantee
        WHERE c.oid = 'presence_clock'::regclass AND g.privilege_type = 'UPDATE'
          AND g.grantee <> c.relowner
    LOOP
        EXECUTE format(
            'GRANT EXECUTE ON FUNCTION presenced_transition, presenced_tick, presenced_renew, '
            'presenced_sweep, presenced_mend_sequences, presenced_log_in_parts, '
            'presenced_notify_flip, presenced_trim_log, presenced_queue_agents, '
            'presenced_walk_rows, presenced_walk_flags, presenced_look TO %s', v_role);
    END LOOP;
END $$;
