-- A transaction a request, in one round trip. The row lock of the agent makes rows and flag change
-- together, whatever other processes do.

CREATE OR REPLACE FUNCTION peer_subscribe(agent bigint, owner bigint, new_token text, session text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    active boolean;
BEGIN
    SELECT routing_active INTO active FROM agents
    WHERE id = agent AND owner_id = owner FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM agent_subscriptions
    WHERE agent_id = agent AND last_seen_at <= clock_timestamp() - interval '45 seconds';
    INSERT INTO agent_subscriptions (agent_id, token, session_id)
    VALUES (agent, new_token, session);
    IF NOT active THEN
        UPDATE agents SET routing_active = true, routing_changed_at = clock_timestamp()
        WHERE id = agent;
    END IF;
    RETURN true;
END $$;

-- Without a token: reaps and sets the flag, no more.
CREATE OR REPLACE FUNCTION peer_unsubscribe(agent bigint, old_token text)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    was_active boolean;
    is_active  boolean;
BEGIN
    SELECT routing_active INTO was_active FROM agents WHERE id = agent FOR NO KEY UPDATE;
    DELETE FROM agent_subscriptions WHERE token = old_token;
    DELETE FROM agent_subscriptions
    WHERE agent_id = agent AND last_seen_at <= clock_timestamp() - interval '45 seconds';
    is_active := EXISTS (SELECT FROM agent_subscriptions WHERE agent_id = agent);
    IF was_active <> is_active THEN
        UPDATE agents SET routing_active = is_active, routing_changed_at = clock_timestamp()
        WHERE id = agent;
    END IF;
END $$;
