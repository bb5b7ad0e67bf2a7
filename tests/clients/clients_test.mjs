// Real Action Cable clients against the real server, directly and through nginx and haproxy.
// PRESENCED_BINARY names the server; node --test-name-pattern chooses cases.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { request } from 'node:https'
import { get } from 'node:http'
import WebSocket from 'ws'
import { clients } from './clients.mjs'
import { house, reload_limit } from './house.mjs'
import { holds_for, within } from './wait.mjs'

const here = dirname(fileURLToPath(import.meta.url))
const owner = 1
const stranger = 2
const channel = 'AgentChannel'
const namespaced = 'Collavre::AgentChannel'

// From the end of a session to row and flag gone (promise P2), and from a subscribe to both there.
const gone_limit = 1000
const there_limit = 5000
// @rails/actioncable looks every 6 to 12 s whether its connection lives, and longer after a failed
// try; @anycable/core waits 1.5 to 9 s, then twice that.
const return_limit = 45_000

const at_once = { concurrency: 200 }

const binary = process.env.PRESENCED_BINARY
if (!binary) {
    console.error('PRESENCED_BINARY is not set: which presenced?')
    process.exit(2)
}

const home = new house(binary)
const secrets = []
const connected = [] // every client there was
const tokens = {} // of the owner, by database
let session_number = 0

function session_id() {
    return `00000000-0000-4000-8000-${String(++session_number).padStart(12, '0')}`
}

function params_of(agent, more = {}) {
    return { channel: namespaced, agent_id: agent, session_id: session_id(), ...more }
}

function connect(client_class, route, token) {
    const client = new client_class({ url: route.url, ca: route.ca, token })
    connected.push(client)
    return client
}

// A client with an agent of its own, subscribed.
async function session(client_class, route, database_name = 'normal') {
    const database = home.databases[database_name]
    const agent = await database.new_agent(owner, `${client_class.title} ${route.title}`)
    const client = connect(client_class, route, tokens[database_name])
    const identifier = client.subscribe(params_of(agent))
    const it = {
        client,
        agent,
        identifier,
        route,
        title: `${client_class.title}, ${route.title}`,
        record: client.record,
        presence: () => database.presence_of(agent),
        row: async () => (await database.rows(
            `select token, node, extract(epoch from last_seen_at - created_at)
             from agent_subscriptions where agent_id = ${agent}`))[0],
    }
    await confirmed(it, 1)
    assert.equal(await it.presence(), '1 on', 'row and flag are there before the confirmation')
    it.first_row = await it.row()
    return it
}

// Confirmed that often so far, on the wire and by the library.
async function confirmed({ client, identifier }, times, limit = there_limit) {
    await within(limit, `confirmations of ${identifier}`,
        () => client.record.confirmations(identifier), times)
    assert.equal(client.events.filter((e) => e === `connected ${identifier}`).length, times)
}

async function gone(it) {
    await within(gone_limit, 'row and flag are gone', it.presence, '0 off')
}

async function close(it) {
    it.client.close()
    await gone(it)
}

// Came back by itself: a new socket, one confirmation on each socket that lived, one row, flag on.
async function is_back(it, limit = return_limit) {
    const before = it.confirmations_before
    await within(limit, 'confirmed again', () => it.record.confirmations(it.identifier) > before)
    // The old row of a node that died goes when its lease has run out.
    await within(10_000, 'one row, flag on', it.presence, '1 on')
    const [token] = await it.row()
    assert.notEqual(token, it.first_row[0], 'a new row')
    for (const { frames } of it.record.sockets) {
        const count = frames.filter((f) => f.type === 'confirm_subscription').length
        assert.ok(count <= 1, `${count} confirmations on one socket`)
    }
}

// All of them, at once.
async function sessions(routes, database_name) {
    const all = await Promise.all(routes.flatMap((route) =>
        clients.map((c) => session(c, route, database_name))))
    all.forEach((it) => (it.confirmations_before = 1))
    return all
}

function each(t, all, what) {
    return Promise.all(all.map((it) => t.test(it.title, () => what(it))))
}

// A bare upgrade: resolves with the status, and the first frame when it is 101.
function upgrade(route, headers, more = {}) {
    return new Promise((resolve, reject) => {
        const socket = new WebSocket(route.url + (more.query ?? ''), 'actioncable-v1-json',
            { ca: route.ca, headers, localAddress: more.from })
        socket.on('message', (data) => {
            resolve({ status: 101, frame: JSON.parse(data.toString()) })
            socket.close()
        })
        socket.on('unexpected-response', (_, response) => {
            resolve({ status: response.statusCode })
            response.resume()
        })
        socket.on('error', reject)
    })
}

function http_status(route, path) {
    const url = new URL(path, route.url.replace(/^ws/, 'http'))
    const ask = url.protocol === 'https:' ? request : get
    return new Promise((resolve, reject) => {
        const asked = ask(url, { ca: route.ca }, (response) => {
            resolve(response.statusCode)
            response.resume()
        })
        asked.on('error', reject)
        asked.end()
    })
}

// ---- One client on one route ------------------------------------------------------------------

async function connects_and_is_confirmed_once(client_class, route) {
    const it = await session(client_class, route)
    assert.equal(it.record.tries, 1)
    assert.equal(it.record.sockets[0].socket.protocol, 'actioncable-v1-json')
    assert.deepEqual(it.record.of_type('welcome').length, 1)
    assert.equal(it.record.frames[0].type, 'welcome')
    await close(it)
    assert.equal(it.record.confirmations(it.identifier), 1)
    assert.equal(it.record.tries, 1)
}

async function is_rejected(client_class, route) {
    const database = home.databases.normal
    const it = await session(client_class, route)
    const foreign = await database.new_agent(stranger, 'of somebody else')
    const deleted = await database.new_agent(owner, 'deleted')
    await database.rows(`delete from agents where id = ${deleted}`)
    const id = it.agent
    const bad = [
        { channel, agent_id: foreign },
        { channel, agent_id: deleted },
        { channel },
        ...['abc', '', '0', 0, -1, 1.5, true, null, `${id}x`, ` ${id}`, '9223372036854775808']
            .map((agent_id) => ({ channel, agent_id })),
        { channel: 'OtherChannel', agent_id: id },
        { channel: 'agentchannel', agent_id: id },
        { channel, agent_id: id, session_id: 'x'.repeat(256) },
        { channel, agent_id: id, session_id: 7 },
    ]
    const identifiers = bad.map((params) => it.client.subscribe(params))
    for (const identifier of identifiers) {
        await within(there_limit, `rejections of ${identifier}`,
            () => it.record.rejections(identifier), 1)
        await within(there_limit, `the library tells its user: ${identifier}`,
            () => it.client.events.filter((e) => e === `rejected ${identifier}`).length, 1)
    }
    // The connection goes on, and nothing came twice.
    const more = { ...it, identifier: it.client.subscribe(params_of(id, { agent_id: `${id}` })) }
    await confirmed(more, 1)
    assert.equal(await it.presence(), '2 on')
    assert.equal(it.record.of_type('reject_subscription').length, identifiers.length)
    assert.equal(it.record.of_type('confirm_subscription').length, 2)
    assert.equal(it.record.tries, 1)
    await close(it)
    assert.equal(await database.presence_of(foreign), '0 off')
}

async function one_byte_makes_two(client_class, route) {
    const it = await session(client_class, route)
    const params = JSON.parse(it.identifier)
    const last = params.session_id.slice(0, -1)
    const other = { ...it, identifier: it.client.subscribe({ ...params, session_id: `${last}x` }) }
    await confirmed(other, 1)
    assert.equal(await it.presence(), '2 on')
    if (client_class.unsubscribes) {
        it.client.unsubscribe(other.identifier)
        await within(gone_limit, 'one of two rows is gone', it.presence, '1 on')
        assert.deepEqual(await it.row().then(([token]) => token), it.first_row[0])
    }
    await close(it)
    assert.equal(it.record.confirmations(it.identifier), 1)
    assert.equal(it.record.confirmations(other.identifier), 1)
}

async function a_resent_subscribe_changes_nothing(client_class, route) {
    const it = await session(client_class, route)
    it.client.resend(it.identifier)
    it.client.resend(it.identifier)
    const agent = await home.databases.normal.new_agent(owner, 'resent at once')
    const other = { ...it, identifier: it.client.subscribe(params_of(agent)) }
    await within(there_limit, 'sent', () => other.record.sockets[0].socket.bufferedAmount, 0)
    it.client.resend(other.identifier) // still pending, most likely
    await confirmed(other, 1)
    // Commands are answered in order: a rejection says that all before it was dealt with.
    const fence = it.client.subscribe({ channel, agent_id: 'fence' })
    await within(there_limit, 'fence', () => it.record.rejections(fence), 1)
    assert.equal(await it.presence(), '1 on')
    assert.deepEqual((await it.row())[0], it.first_row[0])
    assert.equal(await home.databases.normal.presence_of(agent), '1 on')
    await close(it)
    assert.equal(it.record.confirmations(it.identifier), 1)
    assert.equal(it.record.confirmations(other.identifier), 1)
}

async function unsubscribe_takes_row_and_flag(client_class, route) {
    const it = await session(client_class, route)
    const frames = () => it.record.frames.filter((f) => f.identifier === it.identifier).length
    it.client.unsubscribe(it.identifier)
    await gone(it)
    assert.equal(it.record.ended, 0, 'the connection stays')
    assert.equal(it.client.subscribe(JSON.parse(it.identifier)), it.identifier)
    await within(there_limit, 'confirmed anew', () => it.record.confirmations(it.identifier), 2)
    assert.equal(await it.presence(), '1 on')
    assert.notEqual((await it.row())[0], it.first_row[0], 'a new row')
    assert.equal(frames(), 2, 'two confirmations, and nothing for the unsubscribe')
    await close(it)
}

async function a_kill_takes_row_and_flag(client_class, route) {
    const agent = await home.databases.normal.new_agent(owner, 'of a client to be killed')
    const presence = () => home.databases.normal.presence_of(agent)
    const options = { url: route.url, ca: route.ca, token: tokens.normal }
    const child = await home.start_process(`lone-${agent}`, process.execPath,
        [join(here, 'lone_client.mjs'), client_class.title, JSON.stringify(options),
            JSON.stringify(params_of(agent))])
    await within(20_000, 'a client in a process of its own is confirmed', presence, '1 on')
    const ended = once(child, 'exit')
    child.kill('SIGKILL')
    await within(gone_limit, 'row and flag are gone', presence, '0 off')
    await ended
}

async function quiet_for_20_seconds(client_class, route) {
    const it = await session(client_class, route)
    await holds_for(20_000, 'sockets, ended, confirmations, presence', async () =>
        [it.record.tries, it.record.ended, it.record.confirmations(it.identifier),
            await it.presence()].join(), '1,0,1,1 on')
    const [token, , renewed] = await it.row()
    assert.equal(token, it.first_row[0], 'the same row')
    assert.ok(Number(renewed) >= 14, `renewed after 15 s, not ${renewed}`)
    const pings = it.record.of_type('ping')
    assert.ok(pings.length >= 6 && pings.length <= 8, `${pings.length} pings in 20 s`)
    for (const { at, message } of pings) {
        assert.ok(Number.isInteger(message) && Math.abs(message - at / 1000) < 3, `${message}`)
    }
    await close(it)
}

// ---- A bad token ------------------------------------------------------------------------------

async function a_bad_token_is_not_tried_again(client_class, route) {
    const token = `bad-${client_class.title.replace(/\W/g, '')}-${route.title}`
    const client = connect(client_class, route, token)
    client.subscribe({ channel, agent_id: 1 })
    await within(there_limit, 'told why', () => client.record.of_type('disconnect').length > 0)
    const [{ reason, reconnect }] = client.record.of_type('disconnect')
    assert.deepEqual({ reason, reconnect }, { reason: 'unauthorized', reconnect: false })
    await within(there_limit, 'closed', () => client.record.sockets[0].closed)
    assert.equal(client.record.sockets[0].code, 1000)
    if (client_class.title !== 'plugin') {
        await holds_for(12_000, 'tries', () => client.record.tries, 1)
    } else {
        // It does not look at `reconnect`, and an open socket sets its pauses back to a second; the
        // refused upgrade makes it back off: tries after 0, 1, 2, 3, 5, 9 (and 17) seconds.
        await within(20_000, 'six tries', () => client.record.ended, 6)
        const ends = client.record.sockets.map((s) => s.error ?? s.code)
        const refused = 'Unexpected server response: 429'
        assert.deepEqual(ends, [1000, 1000, 1000, refused, refused, refused])
    }
    assert.equal(client.record.of_type('welcome').length, 0)
    client.close()
    return client.record.tries
}

// ---- All of it --------------------------------------------------------------------------------

async function ordinary_cases(t) {
    const nodes = [await home.start_node('calm1'), await home.start_node('calm2')]
    const routes = await home.routes('calm', nodes)
    const cases = [
        ['is confirmed once', connects_and_is_confirmed_once],
        ['is rejected where it should be', is_rejected],
        ['has two subscriptions when one byte differs', one_byte_makes_two],
        ['may send a subscribe again', a_resent_subscribe_changes_nothing],
        ['unsubscribes', unsubscribe_takes_row_and_flag],
        ['is killed', a_kill_takes_row_and_flag],
    ]
    await t.test('ordinary life', at_once, async (t) => {
        const running = []
        for (const route of routes) {
            for (const client_class of clients) {
                const title = `${client_class.title}, ${route.title}`
                running.push(t.test(`${title}: is quiet for 20 s`,
                    () => quiet_for_20_seconds(client_class, route)))
                running.push(t.test(title, async (t) => {
                    for (const [name, run] of cases) {
                        if (run !== unsubscribe_takes_row_and_flag || client_class.unsubscribes) {
                            await t.test(name, () => run(client_class, route))
                        }
                    }
                }))
            }
            running.push(t.test(`origins, ${route.title}`, () => origins(route)))
            running.push(t.test(`addresses, ${route.title}`, () => addresses(route, nodes)))
            running.push(t.test(`other paths, ${route.title}`, () => other_paths(route)))
        }
        await Promise.all(running)
    })
    for (const node of nodes) {
        assert.equal(await node.metric('presenced_leases_lost_total'), 0)
    }
}

async function origins(route) {
    const page = new URL(route.url).origin.replace(/^ws/, 'http')
    const query = `?token=${tokens.normal}`
    for (const origin of [page, `${page}/`, page.replace(/^https?/, 'http')]) {
        const { status, frame } = await upgrade(route, { Origin: origin }, { query })
        assert.deepEqual([status, frame?.type], [101, 'welcome'], origin)
    }
    const foreign = { Origin: 'https://elsewhere.example' }
    assert.equal((await upgrade(route, foreign, { query })).status, 404)
    const forged = { ...foreign, 'X-Forwarded-Host': 'elsewhere.example' }
    if (route.proxy) {
        assert.equal((await upgrade(route, forged, { query })).status, 404)
    } else {
        // Whoever reaches a node past its proxies, and does not come from one of their addresses.
        const from = '127.0.0.9'
        assert.equal((await upgrade(route, forged, { query, from })).status, 404)
    }
}

// The log shows where a client came from, whatever the client says.
async function addresses(route, nodes) {
    const last = { direct: 71, nginx: 72, haproxy: 73 }[route.title]
    const from = `127.0.0.${last}`
    const claim = `203.0.113.${last}`
    const { frame } = await upgrade(route, { 'X-Forwarded-For': claim },
        { query: `?token=${from}`, from })
    assert.equal(frame.reason, 'unauthorized')
    const logged = async () => (await home.logs())
        .filter((log) => nodes.some((n) => log.name === `${n.name}.log`))
        .flatMap((log) => log.text.split('\n'))
    await within(there_limit, `a line with address=${from}`,
        async () => (await logged()).some((l) => l.includes(`address=${from} `)))
    assert.deepEqual((await logged()).filter((l) => l.includes(claim)), [])
}

async function other_paths(route) {
    assert.equal(await http_status(route, '/cable'), 404, 'no upgrade asked for')
    if (route.proxy) {
        for (const path of ['/metrics', '/readyz', '/healthz', '/', '/cable/x']) {
            assert.equal(await http_status(route, path), 404, path)
        }
    }
}

async function bad_tokens(t) {
    const node = await home.start_node('tokens')
    const routes = await home.routes('tokens', [node])
    await t.test('a bad token', at_once, async (t) => {
        const tries = []
        await Promise.all(routes.flatMap((route) => clients.map((client_class) =>
            t.test(`${client_class.title}, ${route.title}`, async () => {
                tries.push(await a_bad_token_is_not_tried_again(client_class, route))
            }))))
        // The node saw these tries and no others, and knew all of them for bad ones.
        const failures = 'presenced_auth_failures_total'
        const opened = await node.metric(failures, 'unknown_token')
        const refused = await node.metric(failures, 'repeated_token')
        assert.equal(tries.reduce((sum, n) => sum + n, 0), 6 * 1 + 3 * 6)
        assert.deepEqual([opened, refused], [6 * 1 + 3 * 3, 3 * 3])
        assert.equal(await node.metric('presenced_connections_opened_total'), opened)
    })
}

async function server_restart(t) {
    const nodes = [await home.start_node('restart1'), await home.start_node('restart2')]
    const routes = await home.routes('restart', nodes)
    await t.test('the servers are restarted', at_once, async (t) => {
        const all = await sessions(routes, 'normal')
        const codes = await Promise.all(nodes.map((node) => node.end('SIGTERM')))
        assert.deepEqual(codes, [0, 0])
        for (const it of all) {
            assert.equal(await it.presence(), '0 off', it.title)
        }
        await Promise.all(nodes.map((node) => node.start()))
        await each(t, all, async (it) => {
            const [{ reason, reconnect }] = it.record.of_type('disconnect')
            assert.deepEqual({ reason, reconnect }, { reason: 'server_restart', reconnect: true })
            await is_back(it)
            await close(it)
        })
    })
}

async function server_kill(t) {
    const nodes = [await home.start_node('quick1', 'quick'),
        await home.start_node('quick2', 'quick')]
    const routes = await home.routes('quick', nodes)
    await t.test('a server of two is killed', at_once, async (t) => {
        const all = await sessions(routes, 'quick')
        const hit = all.filter((it) => it.first_row[1] === 'quick1')
        const spared = all.filter((it) => it.first_row[1] === 'quick2')
        assert.ok(spared.length > 0, 'the proxies use both nodes')
        assert.ok(hit.some((it) => it.route.proxy), 'the proxies use both nodes')
        assert.equal(await nodes[0].end('SIGKILL'), 'SIGKILL')
        // Whoever comes now is not refused, although the dead node has the fewest sessions.
        await are_served(routes.filter((r) => r.proxy), 'quick', 6)
        // Through a proxy, the node that is left will do.
        await Promise.all(hit
            .filter((it) => it.route.proxy && it.title.startsWith('plugin'))
            .map((it) => is_back(it, 15_000)))
        await nodes[0].start()
        await each(t, hit, async (it) => {
            await is_back(it)
            await close(it)
        })
        await each(t, spared, async (it) => {
            assert.equal(it.record.tries, 1)
            assert.deepEqual((await it.row())[0], it.first_row[0])
            await close(it)
        })
    })
}

async function server_freeze(t) {
    const nodes = [await home.start_node('frozen1', 'quick'),
        await home.start_node('frozen2', 'quick')]
    const routes = (await home.routes('frozen', nodes)).filter((r) => r.proxy)
    await t.test('a server of two freezes', at_once, async (t) => {
        const all = await sessions(routes, 'quick')
        const hit = all.filter((it) => it.first_row[1] === 'frozen1')
        const spared = all.filter((it) => it.first_row[1] === 'frozen2')
        assert.ok(hit.length > 0 && spared.length > 0, 'the proxies use both nodes')
        nodes[0].process.kill('SIGSTOP')
        try {
            await each(t, hit, (it) => is_back(it))
        } finally {
            nodes[0].process.kill('SIGCONT')
        }
        await each(t, all, async (it) => {
            const [token, node] = await it.row()
            assert.equal(node, 'frozen2')
            assert.equal(token === it.first_row[0], spared.includes(it))
            await close(it)
        })
    })
}

async function server_full(t) {
    const nodes = [await home.start_node('full1', 'normal', { PRESENCED_MAX_CONNECTIONS: '1' }),
        await home.start_node('full2')]
    const routes = (await home.routes('full', nodes)).filter((r) => r.proxy)
    await t.test('a server of two is full', async () => {
        await are_served(routes, 'normal', 6)
        assert.ok(await nodes[0].metric('presenced_limits_hit_total', 'connections') > 0)
    })
}

// As many upgrades at once, on each route: every one is welcome.
async function are_served(routes, database_name, count) {
    const query = `?token=${tokens[database_name]}`
    const all = await Promise.all(routes.flatMap((route) =>
        Array.from({ length: count }, () => upgrade(route, {}, { query }))))
    assert.deepEqual(all.map(({ frame, status }) => frame?.type ?? status),
        all.map(() => 'welcome'))
}

async function proxy_reload(t) {
    const nodes = [await home.start_node('reload1'), await home.start_node('reload2')]
    const routes = (await home.routes('reload', nodes)).filter((r) => r.proxy)
    await t.test('a proxy is reloaded', at_once, async (t) => {
        const all = await sessions(routes, 'normal')
        routes.forEach((route) => route.proxy.reload())
        // The old workers keep what they have, the new ones take what comes.
        await Promise.all(all.map((it) => holds_for(reload_limit / 2, `${it.title}: ended`,
            () => it.record.ended, 0)))
        await Promise.all(routes.map(async (route) => {
            const it = await session(clients.at(-1), route)
            await within(reload_limit * 3, `${route.title}: the old worker's sessions are cut`,
                () => all.filter((a) => a.route === route).every((a) => a.record.ended > 0))
            assert.equal(it.record.ended, 0, 'a session of the new worker stays')
            await close(it)
        }))
        await each(t, all, async (it) => {
            await is_back(it)
            await close(it)
        })
    })
}

async function proxy_kill(t) {
    const nodes = [await home.start_node('cut1'), await home.start_node('cut2')]
    const routes = (await home.routes('cut', nodes)).filter((r) => r.proxy)
    await t.test('a proxy is killed', at_once, async (t) => {
        const all = await sessions(routes, 'normal')
        await Promise.all(routes.map((route) => route.proxy.kill()))
        await Promise.all(all.map((it) =>
            within(gone_limit, `${it.title}: row and flag are gone`, it.presence, '0 off')))
        await Promise.all(routes.map((route) => route.proxy.start()))
        await each(t, all, async (it) => {
            await is_back(it)
            await close(it)
        })
    })
}

async function nothing_is_left() {
    for (const [name, database] of Object.entries(home.databases)) {
        const rows = await database.rows('select * from agent_subscriptions')
        const flags = await database.rows('select id from agents where routing_active')
        assert.deepEqual({ rows, flags }, { rows: [], flags: [] }, name)
    }
    assert.deepEqual(await Promise.all(home.nodes.map((node) => node.end('SIGTERM'))),
        home.nodes.map(() => 0), 'exit codes')
    for (const { name, text } of await home.logs()) {
        assert.doesNotMatch(text, /Sanitizer|runtime error:/, name)
        for (const secret of secrets) {
            assert.ok(!text.includes(secret), `${name} holds a token`)
        }
    }
}

// Whatever hangs, it ends; the janitor tidies up.
setTimeout(() => {
    console.error('the test did not end in 200 s')
    home.keep_logs()
    process.exit(1)
}, 200_000).unref()

test('clients', { concurrency: 200 }, async (t) => {
    let failed = true
    try {
        await home.open()
        for (const name of Object.keys(home.databases)) {
            tokens[name] = await home.command(name, ['token', 'issue', '--owner', `${owner}`])
            assert.match(tokens[name], /^\S{20,}$/, 'the secret, alone on stdout')
            secrets.push(tokens[name])
        }
        const created = JSON.parse(await home.command('normal',
            ['agent', 'create', '--owner', `${owner}`, '--name', 'first', '--json']))
        assert.equal(await home.databases.normal.presence_of(created.id), '0 off')

        const parts = [ordinary_cases, bad_tokens, server_restart, server_kill, server_freeze,
            server_full, proxy_reload, proxy_kill]
        const ends = await Promise.allSettled(parts.map((part) => part(t)))
        for (const { status, reason } of ends) {
            assert.equal(status, 'fulfilled', reason?.stack)
        }
        await t.test('nothing is left', nothing_is_left)
        failed = false
    } finally {
        // Those of failed cases would try again for ever.
        connected.forEach((client) => client.close())
        if (failed) {
            home.keep_logs()
        }
        await home.close()
    }
})
