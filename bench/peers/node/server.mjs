// Presence as a Node service has it: ws and pg, a process a core, on the tables that
// "presenced migrate" makes. PORT and DATABASE_URL say where.
import cluster from 'node:cluster'
import { createServer } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { WebSocketServer } from 'ws'
import { connection, live } from './connection.mjs'
import * as database from './database.mjs'

const heartbeat = 15_000
const ping = 3_000
const socket_ping = 10_000
const pongs_missed = 3 // in a row: gone
const sweep = 5_000
const batch = 1_000

// Runs `work` again and again; what failed is tried again the next time.
function every(interval, work) {
    setInterval(() => Promise.resolve(work()).catch(() => {}), interval)
}

async function lead() {
    // Each process accepts for itself, which is faster than being handed every socket.
    cluster.schedulingPolicy = cluster.SCHED_NONE
    await database.migrate()
    every(sweep, database.sweep)
    for (let i = 0; i < Number(process.env.WEB_CONCURRENCY ?? 2); ++i) {
        cluster.fork()
    }
    let stopping = false
    cluster.on('exit', () => {
        if (!stopping) {
            cluster.fork()
        } else if (Object.keys(cluster.workers).length === 0) {
            process.exit()
        }
    })
    process.on('SIGTERM', () => {
        stopping = true
        Object.values(cluster.workers).forEach((worker) => worker.send('stop'))
    })
}

function serve() {
    const connections = new Map() // socket -> its connection
    const sockets = new WebSocketServer({
        noServer: true,
        clientTracking: false,
        maxPayload: 64 * 1024,
        handleProtocols: (offered) =>
            [...offered].find((p) => p.startsWith('actioncable-')) ?? false,
    })
    const http = createServer((request, response) => {
        response.statusCode = request.url === '/up' ? 200 : 404
        response.end()
    })

    http.on('upgrade', async (request, raw, head) => {
        raw.on('error', () => raw.destroy())
        const url = new URL(request.url, 'http://localhost')
        if (url.pathname !== '/cable') {
            raw.end('HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n')
            return
        }
        let owner
        try {
            owner = await database.authenticate(url.searchParams.get('token') ?? '')
        } catch {
            raw.end('HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n')
            return
        }
        sockets.handleUpgrade(request, raw, head, (socket) => {
            if (owner === undefined) {
                socket.send('{"type":"disconnect","reason":"unauthorized","reconnect":false}')
                socket.close(1000)
                return
            }
            connections.set(socket, new connection(socket, owner))
            socket.on('close', () => connections.delete(socket))
        })
    })

    every(ping, () => {
        const text = `{"type":"ping","message":${Math.floor(Date.now() / 1000)}}`
        for (const socket of connections.keys()) {
            socket.send(text)
        }
    })
    every(socket_ping, () => {
        for (const [socket, its_connection] of connections) {
            if (its_connection.unanswered >= pongs_missed) {
                socket.terminate()
            } else {
                ++its_connection.unanswered
                socket.ping()
            }
        }
    })
    // One statement for many rows, as one process holds them all.
    every(heartbeat, async () => {
        const tokens = [...live.keys()]
        for (let i = 0; i < tokens.length; i += batch) {
            for (const lost of await database.renew(tokens.slice(i, i + batch).sort())) {
                live.get(lost)?.disconnect('lease_lost', true)
            }
        }
    })

    http.listen({ port: Number(process.env.PORT), host: '127.0.0.1', backlog: 4096 })
    process.on('SIGTERM', () => {}) // the primary says when
    process.on('message', async () => {
        http.close()
        const all = [...connections.values()]
        all.forEach((c) => c.disconnect('server_restart', true))
        const closed = (async () => {
            while (connections.size > 0) {
                await sleep(20)
            }
            await Promise.all(all.map((c) => c.released))
        })()
        await Promise.race([closed, sleep(20_000)])
        process.exit()
    })
}

await (cluster.isPrimary ? lead() : serve())
