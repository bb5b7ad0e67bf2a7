#include "db/session/statements.hpp"

namespace presenced::db::statements {

// Points in time travel as whole microseconds since 1970: no time zone, no date style, no rounding.

statement const transition{"transition", R"(
    SELECT (extract(epoch FROM at) * 1000000)::bigint, outcomes, flips, reaped
    FROM presenced_transition(
        $1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::text,
        'epoch'::timestamptz + $7::bigint * interval '1 microsecond', $8::boolean))"};

statement const renew{"renew", R"(
    SELECT (extract(epoch FROM at) * 1000000)::bigint, missing, held,
           (extract(epoch FROM clock_timestamp() - ticked_at) * 1000)::bigint
    FROM presenced_renew(
        $1::bigint[], $2::text[], $3::boolean, $4::text, $5::text, $6::text,
        $7::bigint * interval '1 millisecond', $8::text[]))"};

statement const sweep{"sweep", R"(
    SELECT ran, (extract(epoch FROM next_in) * 1000)::bigint, flips, reaped
    FROM presenced_sweep(
        $1::text, $2::text, $3::bigint * interval '1 millisecond',
        $4::bigint * interval '1 hour', $5::integer))"};

// Nobody's token lives longer than ten years for us, so that no sum of times can overflow. Here and
// in check_tokens, a token's agents travel in order and each once: two lists of the same agents
// have the same text.
statement const authenticate{"authenticate", R"(
    SELECT o.ord - 1, t.id, t.owner_id, t.revoked_at IS NOT NULL,
           t.expires_at <= clock_timestamp(),
           CASE WHEN isfinite(t.expires_at) THEN
               (extract(epoch FROM least(t.expires_at - clock_timestamp(), interval '10 years'))
                * 1000)::bigint END,
           t.role,
           CASE WHEN t.agents IS NOT NULL THEN
               ARRAY(SELECT DISTINCT a FROM unnest(t.agents) AS a ORDER BY a)::text END
    FROM unnest($1::bytea[]) WITH ORDINALITY AS o (digest, ord)
    JOIN access_tokens t ON t.token_sha256 = o.digest)"};

statement const check_tokens{"check_tokens", R"(
    SELECT o.ord - 1
    FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[])
         WITH ORDINALITY AS o (id, owner_id, role, agents, ord)
    LEFT JOIN access_tokens t ON t.id = o.id
    WHERE t.id IS NULL OR t.revoked_at IS NOT NULL OR t.expires_at <= clock_timestamp()
       OR t.owner_id <> o.owner_id OR t.role <> o.role
       OR CASE WHEN t.agents IS NOT NULL THEN
              ARRAY(SELECT DISTINCT a FROM unnest(t.agents) AS a ORDER BY a)::text END
          IS DISTINCT FROM o.agents)"};

statement const check_owners{"check_owners", R"(
    SELECT o.ord - 1
    FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS o (agent_id, owner_id, ord)
    JOIN agents a ON a.id = o.agent_id
    WHERE a.owner_id <> o.owner_id)"};

statement const forget_node{"forget_node", R"(
    DELETE FROM nodes WHERE node = $1::text AND boot_id = $2::text)"};

statement const fence{"fence", R"(
    SELECT pg_terminate_backend(pid, 2000)
    FROM pg_stat_activity
    WHERE pid = $1::integer AND (extract(epoch FROM backend_start) * 1000000)::bigint = $2::bigint
)"};

} // namespace presenced::db::statements
