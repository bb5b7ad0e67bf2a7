// The rules that presenced and its peers share, tried on each with real clients. What they do not
// share (clients that are frozen, processes that are killed) is measured elsewhere.
import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { free_port, house } from '../../tests/clients/house.mjs'
import { plugin_client } from '../../tests/clients/plugin_client.mjs'
import { rails_client } from '../../tests/clients/rails_client.mjs'
import { within } from '../../tests/clients/wait.mjs'

const here = dirname(fileURLToPath(import.meta.url))
const binary = process.env.PRESENCED_BINARY
const owner = 7
const heartbeat = 15_000
const token = 'a-token-that-all-of-them-know'
const home = new house(binary)
const clients = []

// Each server has a database of its own, so that none puts right what another does wrong.
async function prepare_database(name) {
    const database = await home.add_database(name)
    await database.rows(`insert into access_tokens (token_sha256, owner_id)
        values (sha256(convert_to('${token}', 'UTF8')), ${owner})`)
    return database
}

async function start_presenced() {
    const database = await prepare_database('ours')
    return { database, port: (await home.start_node('presenced', 'ours')).port }
}

async function start_peer(name) {
    const database = await prepare_database(name)
    const port = await free_port()
    const env = { ...process.env, PORT: port, DATABASE_URL: home.url(name) }
    const child = await home.start_process(name, join(here, name, 'serve'), [], env)
    await within(60_000, `${name} answers`, async () => {
        assert.equal(child.exitCode, null, `${name} ended, see its log`)
        return fetch(`http://127.0.0.1:${port}/up`).then((r) => r.ok, () => false)
    })
    return { database, port }
}

function connect(client_class, port, options = {}) {
    const client = new client_class({ url: `ws://127.0.0.1:${port}/cable`, token, ...options })
    clients.push(client)
    return client
}

// A client whose subscription is confirmed.
async function subscriber(client_class, port, agent) {
    const client = connect(client_class, port)
    const identifier = client.subscribe({ channel: 'AgentChannel', agent_id: agent })
    await within(5000, 'confirmed', () => client.record.confirmations(identifier), 1)
    return { client, identifier }
}

const becomes = (database, agent, presence) =>
    within(5000, `agent ${agent}`, () => database.presence_of(agent), presence)

const cases = {
    'welcome, confirmation, row and flag; gone when it closes': async ({ database, port }) => {
        const agent = await database.new_agent(owner, 'first')
        const { client } = await subscriber(plugin_client, port, agent)
        assert.equal(client.record.frames[0].type, 'welcome')
        assert.equal(client.record.sockets[0].socket.protocol, 'actioncable-v1-json')
        await becomes(database, agent, '1 on')
        client.close()
        await becomes(database, agent, '0 off')
    },
    'the flag stays on until the last session ends': async ({ database, port }) => {
        const agent = await database.new_agent(owner, 'two')
        const { client: first } = await subscriber(plugin_client, port, agent)
        const { client: second } = await subscriber(plugin_client, port, agent)
        await becomes(database, agent, '2 on')
        first.close()
        await becomes(database, agent, '1 on')
        second.close()
        await becomes(database, agent, '0 off')
    },
    'a subscribe that is sent again is one row; unsubscribe removes it': async ({ database, port }) => {
        const agent = await database.new_agent(owner, 'again')
        const { client, identifier } = await subscriber(rails_client, port, agent)
        client.resend(identifier)
        client.resend(identifier)
        await becomes(database, agent, '1 on')
        client.unsubscribe(identifier)
        await becomes(database, agent, '0 off')
        assert.equal(client.record.confirmations(identifier), 1)
        assert.equal(client.record.ended, 0)
    },
    "an agent that is not the token owner's is rejected": async ({ database, port }) => {
        const agent = await database.new_agent(owner + 1, 'foreign')
        const client = connect(plugin_client, port)
        const identifier = client.subscribe({ channel: 'AgentChannel', agent_id: agent })
        await within(5000, 'rejected', () => client.record.rejections(identifier), 1)
        assert.equal(await database.presence_of(agent), '0 off')
    },
    'a token that nobody knows is unauthorized, once and for all': async ({ database, port }) => {
        const client = connect(rails_client, port, { token: 'nobody' })
        client.subscribe({ channel: 'AgentChannel', agent_id: 1 })
        await within(5000, 'ended', () => client.record.ended, 1)
        const [{ at, ...frame }, ...more] = client.record.frames
        assert.deepEqual(frame, { type: 'disconnect', reason: 'unauthorized', reconnect: false })
        assert.deepEqual(more, [])
    },
    'a client that is killed is off at once': async ({ database, port }) => {
        const agent = await database.new_agent(owner, 'killed')
        const child = spawn(process.execPath, [join(here, '../../tests/clients/lone_client.mjs'),
            'plugin', JSON.stringify({ url: `ws://127.0.0.1:${port}/cable`, token }),
            JSON.stringify({ channel: 'AgentChannel', agent_id: agent })])
        await once(createInterface({ input: child.stdout }), 'line')
        await becomes(database, agent, '1 on')
        child.kill('SIGKILL')
        await becomes(database, agent, '0 off')
    },
    'forty clients at once, none left': async ({ database, port }) => {
        const agents = [await database.new_agent(owner, 'a'), await database.new_agent(owner, 'b')]
        await Promise.all(Array.from({ length: 40 }, async (_, i) => {
            const { client } = await subscriber(plugin_client, port, agents[i % 2])
            client.close()
        }))
        await Promise.all(agents.map((agent) => becomes(database, agent, '0 off')))
    },
    'presenced connect gets along with it': async ({ database, port }) => {
        const agent = await database.new_agent(owner, 'connect')
        const child = spawn(binary, ['connect', `ws://127.0.0.1:${port}/cable`, '--agent', agent],
            { env: { ...process.env, PRESENCED_TOKEN: token } })
        const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
        assert.match((await lines.next()).value, /^connected /)
        assert.equal((await lines.next()).value, `routing on  agent=${agent}`)
        await becomes(database, agent, '1 on')
        const ended = once(child, 'exit')
        child.kill('SIGINT')
        assert.deepEqual(await ended, [0, null])
        await becomes(database, agent, '0 off')
    },
    'a ping every 3 s with the time in it; renewed every heartbeat': async ({ database, port }) => {
        const agent = await database.new_agent(owner, 'renewed')
        const { client } = await subscriber(plugin_client, port, agent)
        const last_seen = () => database.value(
            `select last_seen_at from agent_subscriptions where agent_id = ${agent}`)
        const first = await last_seen()
        await within(heartbeat + 5000, 'renewed', last_seen, (seen) => seen !== first)
        const pings = () => client.record.of_type('ping')
        await within(20_000, 'five pings', () => pings().length, (n) => n >= 5)
        // By the times they were sent at: on a busy machine they arrive when they can.
        const sent = pings().map((p) => p.message)
        assert.ok(sent.every(Number.isInteger), `${sent}`)
        assert.ok(Math.abs(sent[0] - pings()[0].at / 1000) < 60, `${sent}`)
        const gap = (sent.at(-1) - sent[0]) / (sent.length - 1)
        assert.ok(gap > 2.5 && gap < 3.5, `${gap} s between two pings: ${sent}`)
        assert.equal(client.record.ended, 0)
    },
    'a row that is deleted is not put back, and its client is told': async ({ database, port }) => {
        const agent = await database.new_agent(owner, 'lost')
        const { client } = await subscriber(rails_client, port, agent)
        await database.rows(`delete from agent_subscriptions where agent_id = ${agent}`)
        const told = () => client.record.of_type('disconnect').map((f) => f.reason).join()
        await within(heartbeat + 5000, 'told', told, 'lease_lost')
    },
}

// presenced judges nobody in its first 45 s; its own tests know how to wait for that.
const cases_of_peers = {
    ...cases,
    'what a dead process left is reaped by the next subscribe': async ({ database, port }) => {
        const agent = await database.new_agent(owner, 'left')
        await database.rows(`insert into agent_subscriptions (agent_id, token, last_seen_at)
            values (${agent}, 'left on ${port}', now() - interval '1 minute')`)
        await subscriber(plugin_client, port, agent)
        await becomes(database, agent, '1 on')
    },
}

test('peers', { concurrency: 100 }, async (t) => {
    let failed = true
    const failures = []
    const noting = (run, server) => () => run(server).catch((error) => {
        failures.push(error)
        throw error
    })
    try {
        await home.open()
        const servers = [
            ['presenced', cases, start_presenced],
            ['rails', cases_of_peers, () => start_peer('rails')],
            ['node', cases_of_peers, () => start_peer('node')],
        ]
        const started = await Promise.all(servers.map(([, , start]) => start()))
        await Promise.all(servers.flatMap(([name, its_cases], i) => Object.entries(its_cases).map(
            ([title, run]) => t.test(`${name}: ${title}`, noting(run, started[i])))))
        failed = failures.length > 0
    } finally {
        clients.forEach((client) => client.close())
        if (failed) {
            home.keep_logs()
        }
        await home.close()
    }
})
