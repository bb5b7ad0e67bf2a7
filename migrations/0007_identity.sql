-- presenced-oldest-binary: 0.1.0
--
-- What the bearer of an access token may do, and for which agents.
--
--   session  the sessions of the owner's agents            app    the rest, for one owner
--   peer     that, and to see and address these agents     admin  the rest, for all owners
-- agents: narrows every right to these agents; null: all agents of the owner.

ALTER TABLE access_tokens
    ADD COLUMN role   text NOT NULL DEFAULT 'session'
                      CONSTRAINT access_tokens_role
                      CHECK (role IN ('session', 'peer', 'app', 'admin')),
    ADD COLUMN agents bigint[]
                      CONSTRAINT access_tokens_agents
                      CHECK (array_position(agents, NULL) IS NULL);

-- An app has INSERT on access_tokens, perhaps on the whole table and so on every column that is
-- added. Only who has the rights of the table's owner writes a token above `peer`. Others may end
-- such a token and may rename it: they may not make, prolong or revive one, or make it theirs.
CREATE FUNCTION presenced_guard_roles() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF pg_has_role(current_user, (SELECT c.relowner FROM pg_class c WHERE c.oid = TG_RELID),
                   'USAGE') THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF NEW.role = OLD.role AND NEW.token_sha256 = OLD.token_sha256
           AND NEW.owner_id = OLD.owner_id AND NEW.agents IS NOT DISTINCT FROM OLD.agents
           AND coalesce(NEW.expires_at, 'infinity') <= coalesce(OLD.expires_at, 'infinity')
           AND coalesce(NEW.revoked_at, 'infinity') <= coalesce(OLD.revoked_at, 'infinity') THEN
            RETURN NULL;
        END IF;
    END IF;
    RAISE EXCEPTION 'role % may not write an access token of role %', current_user, NEW.role
        USING HINT = 'tokens above peer are issued by the owner of the table', ERRCODE = '42501';
END $$;
-- AFTER: what counts is what is written, whatever triggers of somebody else's made of it.
CREATE TRIGGER access_tokens_roles AFTER INSERT OR UPDATE ON access_tokens FOR EACH ROW
    WHEN (NEW.role IN ('app', 'admin'))
    EXECUTE FUNCTION presenced_guard_roles();
