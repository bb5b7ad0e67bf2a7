// What is asked of PostgreSQL. Each is one statement, prepared once a connection.
import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import pg from 'pg'

pg.types.setTypeParser(pg.types.builtins.INT8, String) // larger than a double can say

const pool = new pg.Pool({
    connectionString: process.env.DATABASE_URL,
    max: Number(process.env.POOL ?? 8),
    idleTimeoutMillis: 0,
})
pool.on('error', () => {}) // an idle connection broke; the next query opens another

const query = async (name, text, values) => (await pool.query({ name, text, values })).rows

export async function migrate() {
    await pool.query(await readFile(new URL('schema.sql', import.meta.url), 'utf8'))
}

// The owner of a token; undefined when it is unknown, expired or revoked.
export async function authenticate(token) {
    const digest = createHash('sha256').update(token).digest()
    const [row] = await query('authenticate',
        `SELECT owner_id FROM access_tokens WHERE token_sha256 = $1 AND revoked_at IS NULL
         AND (expires_at IS NULL OR expires_at > now())`, [digest])
    return row?.owner_id
}

export async function subscribe(agent, owner, token, session) {
    const [row] = await query('subscribe', 'SELECT peer_subscribe($1, $2, $3, $4) AS is_made',
        [agent, owner, token, session])
    return row.is_made
}

export async function unsubscribe(agent, token) {
    await query('unsubscribe', 'SELECT peer_unsubscribe($1, $2)', [agent, token])
}

// Renews these and returns those that have no row any more.
export async function renew(tokens) {
    const found = await query('renew',
        `UPDATE agent_subscriptions SET last_seen_at = clock_timestamp() WHERE token = ANY ($1)
         RETURNING token`, [tokens])
    if (found.length === tokens.length) {
        return []
    }
    const renewed = new Set(found.map((row) => row.token))
    return tokens.filter((token) => !renewed.has(token))
}

// Agents with rows that nobody has renewed for 45 s: their process died.
export async function sweep() {
    await query('sweep',
        `SELECT peer_unsubscribe(agent_id, NULL) FROM (
             SELECT DISTINCT agent_id FROM agent_subscriptions
             WHERE last_seen_at <= clock_timestamp() - interval '45 seconds'
             ORDER BY agent_id LIMIT 500) stale`, [])
}
