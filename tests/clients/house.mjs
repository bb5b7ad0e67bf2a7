// What the clients connect to: a private PostgreSQL, presenced nodes, and nginx and haproxy with
// the files of docs/proxy/. All on loopback, all in one directory, all ended by the janitor.
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, mkdtemp, open, readdir, readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { database } from './database.mjs'
import { within } from './wait.mjs'

const run = promisify(execFile)
const here = dirname(fileURLToPath(import.meta.url))
const checkout = dirname(dirname(here))

// A tenth of the defaults.
export const quick = {
    PRESENCED_HEARTBEAT: '1500ms',
    PRESENCED_STALE_AFTER: '4500ms',
    PRESENCED_SWEEP: '500ms',
    PRESENCED_PING: '300ms',
    PRESENCED_PEER_TIMEOUT: '3s',
}

// How long a proxy's old workers keep their sessions after a reload, here.
export const reload_limit = 4000

const taken = new Set()

// Below the range from which the kernel takes the ports of clients, so that none sits on it.
export async function free_port() {
    for (;;) {
        const port = 20000 + Math.floor(Math.random() * 12000)
        if (taken.has(port)) {
            continue
        }
        const probe = createServer().listen(port, '127.0.0.1')
        try {
            await once(probe, 'listening')
        } catch {
            continue // somebody else's
        }
        probe.close()
        await once(probe, 'close')
        taken.add(port)
        return port
    }
}

// Replaces each of `changes`, and insists that it is there once: the file of docs/proxy/ as it is,
// but for addresses, places and sizes.
function adapted(file, text, changes) {
    for (const [from, to] of changes) {
        if (text.split(from).length !== 2) {
            throw new Error(`${file} does not hold "${from}" exactly once`)
        }
        text = text.replace(from, () => to)
    }
    return text
}

export class house {
    directory
    authority // the certificate that the proxies show
    databases = {}
    nodes = []
    #binary
    #janitor
    #urls = {}

    constructor(binary) {
        this.#binary = binary
    }

    async open() {
        this.directory = await mkdtemp(join(tmpdir(), 'presenced-clients-'))
        await chmod(this.directory, 0o711) // PostgreSQL and nginx's workers run as others
        this.#janitor = spawn(process.execPath, [join(here, 'janitor.mjs')],
            { detached: true, stdio: ['pipe', 'inherit', 'inherit'] })
        this.#tell(`directory ${this.directory}`)

        const script = join(checkout, 'script/postgres')
        const home = join(this.directory, 'postgres')
        this.#tell(`postgres ${script} ${home}`)
        const { stdout } = await run(script, ['temp', home, '-c', 'max_connections=200'])
        this.#urls.normal = stdout.trim()
        this.databases.normal = new database(this.#urls.normal)
        await this.command('normal', ['migrate'])
        await this.add_database('quick', quick)

        const place = (name) => join(this.directory, name)
        await run('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt',
            'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2', '-subj', '/CN=presenced',
            '-addext', 'subjectAltName=IP:127.0.0.1',
            '-keyout', place('key.pem'), '-out', place('certificate.pem')])
        this.authority = await readFile(place('certificate.pem'), 'utf8')
        await writeFile(place('both.pem'),
            this.authority + await readFile(place('key.pem'), 'utf8'))
    }

    // One more on the same server, with presenced's schema.
    async add_database(name, settings = {}) {
        await this.databases.normal.rows(`create database presenced_${name}`)
        this.#urls[name] = this.#urls.normal.replace('/presenced?', `/presenced_${name}?`)
        this.databases[name] = new database(this.#urls[name])
        await this.command(name, ['migrate'], settings)
        return this.databases[name]
    }

    url(name) {
        return this.#urls[name]
    }

    keep_logs() {
        this.#tell('keep')
        console.error(`the logs are kept in ${this.directory}`)
    }

    // Ends everything.
    async close() {
        Object.values(this.databases).forEach((d) => d.close())
        const ended = once(this.#janitor, 'exit')
        this.#janitor.stdin.end()
        const [code] = await ended
        if (code !== 0) {
            throw new Error('the janitor could not tidy up')
        }
    }

    // Runs one of presenced's commands and returns what it prints.
    async command(name, words, settings = {}) {
        const env = this.#environment(name, settings)
        const { stdout } = await run(this.#binary, words, { env })
        return stdout.trim()
    }

    async start_node(name, database_name = 'normal', more = {}) {
        const settings = { ...(database_name === 'quick' ? quick : {}), ...more }
        const its_database = this.databases[database_name]
        const node = new presenced_node(this, name, await free_port(), its_database)
        node.environment = this.#environment(database_name, {
            ...settings,
            PRESENCED_LISTEN: `127.0.0.1:${node.port}`,
            PRESENCED_NODE: name,
            PRESENCED_TRUSTED_PROXIES: '127.0.0.1',
            PRESENCED_THREADS: '1',
        })
        node.binary = this.#binary
        this.nodes.push(node)
        await node.start()
        return node
    }

    async start_nginx(name, [first, second]) {
        const home = join(this.directory, name)
        await mkdir(home)
        const port = await free_port()
        const source = join(checkout, 'docs/proxy/nginx.conf')
        const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
            .map((t) => `${t}_temp_path ${home}/${t};`)
        await writeFile(join(home, 'nginx.conf'), adapted(source, await readFile(source, 'utf8'), [
            ['/run/nginx.pid', `${home}/pid`],
            ['worker_rlimit_nofile 65536;', 'worker_rlimit_nofile 1024;'],
            ['worker_connections 32768;', 'worker_connections 512;'],
            ['worker_shutdown_timeout 10m;', `worker_shutdown_timeout ${reload_limit}ms;`],
            ['\nhttp {\n', `\nhttp {\n${temporary.join('\n')}\n`],
            ['/var/log/nginx/presenced_access.log', `${home}/access.log`],
            ['/var/log/nginx/presenced_error.log', `${home}/error.log`],
            ['10.0.0.11:8080', `127.0.0.1:${first.port}`],
            ['10.0.0.12:8080', `127.0.0.1:${second.port}`],
            ['listen 443 ssl;', `listen 127.0.0.1:${port} ssl;`],
            ['/etc/nginx/presenced.crt', `${this.directory}/certificate.pem`],
            ['/etc/nginx/presenced.key', `${this.directory}/key.pem`],
        ]))
        return await this.#start_proxy(name, port, 'SIGHUP', '/usr/sbin/nginx',
            ['-e', 'stderr', '-p', home, '-c', join(home, 'nginx.conf'), '-g', 'daemon off;'])
    }

    async start_haproxy(name, [first, second]) {
        const home = join(this.directory, name)
        await mkdir(home)
        const port = await free_port()
        const source = join(checkout, 'docs/proxy/haproxy.cfg')
        const for_root_only = process.getuid() === 0 ? [] : [
            ['    user haproxy\n', ''],
            ['    group haproxy\n', ''],
            ['    chroot /var/lib/haproxy\n', ''],
        ]
        await writeFile(join(home, 'haproxy.cfg'), adapted(source, await readFile(source, 'utf8'), [
            ...for_root_only,
            ['log /dev/log local0', 'log stdout format raw local0'],
            ['fd-hard-limit 65536', 'fd-hard-limit 1000'],
            ['hard-stop-after 10m', `hard-stop-after ${reload_limit}ms`],
            ['bind :443 ssl', `bind 127.0.0.1:${port} ssl`],
            ['/etc/haproxy/presenced.pem', `${this.directory}/both.pem`],
            ['10.0.0.11:8080', `127.0.0.1:${first.port}`],
            ['10.0.0.12:8080', `127.0.0.1:${second.port}`],
        ]))
        return await this.#start_proxy(name, port, 'SIGUSR2', '/usr/sbin/haproxy',
            ['-W', '-db', '-f', join(home, 'haproxy.cfg')])
    }

    // The ways to one or two nodes: to the first one directly, and to both through each proxy.
    async routes(name, nodes) {
        const two = nodes.length === 2 ? nodes : [nodes[0], nodes[0]]
        const nginx = await this.start_nginx(`${name}-nginx`, two)
        const haproxy = await this.start_haproxy(`${name}-haproxy`, two)
        const through = (proxy) =>
            ({ url: `wss://127.0.0.1:${proxy.port}/cable`, ca: this.authority, proxy })
        return [
            { title: 'direct', url: `ws://127.0.0.1:${nodes[0].port}/cable` },
            { title: 'nginx', ...through(nginx) },
            { title: 'haproxy', ...through(haproxy) },
        ]
    }

    // A process in a group of its own, its output in a file.
    async start_process(name, program, words, env = process.env) {
        const log = await open(join(this.directory, `${name}.log`), 'a')
        const child = spawn(program, words,
            { detached: true, env, stdio: ['ignore', log.fd, log.fd] })
        child.on('error', (error) => (child.failure = error))
        if (child.pid !== undefined) {
            this.#tell(`started ${child.pid}`)
            // A master that is gone may have left workers, which stay the janitor's.
            child.on('exit', () => {
                try {
                    process.kill(-child.pid, 0)
                } catch {
                    this.#tell(`ended ${child.pid}`)
                }
            })
        }
        await log.close()
        return child
    }

    // All that anybody wrote into a log.
    async logs() {
        const entries = await readdir(this.directory, { withFileTypes: true })
        const nested = await Promise.all(entries
            .filter((e) => e.isDirectory() && e.name !== 'postgres')
            .map(async (e) => (await readdir(join(this.directory, e.name)))
                .map((file) => join(e.name, file))))
        const names = [...entries.map((e) => e.name), ...nested.flat()]
            .filter((name) => name.endsWith('.log'))
        return await Promise.all(names.map(async (name) =>
            ({ name, text: await readFile(join(this.directory, name), 'utf8') })))
    }

    async #start_proxy(name, port, reload_signal, program, words) {
        const proxy = new proxy_process(this, name, port, reload_signal, program, words)
        await proxy.start()
        return proxy
    }

    #environment(name, settings) {
        const inherited = Object.entries(process.env)
            .filter(([key]) => !key.startsWith('PRESENCED_') && !key.startsWith('PG'))
        return { ...Object.fromEntries(inherited), ...settings, DATABASE_URL: this.#urls[name] }
    }

    #tell(line) {
        this.#janitor.stdin.write(`${line}\n`)
    }
}

async function status_of(url) {
    try {
        return (await fetch(url)).status
    } catch (error) {
        return error.cause?.code ?? error.message
    }
}

class presenced_node {
    constructor(its_house, name, port, its_database) {
        this.house = its_house
        this.name = name
        this.port = port
        this.database = its_database
    }

    async start() {
        this.process = await this.house.start_process(this.name, this.binary, ['serve'],
            this.environment)
        await within(15_000, `${this.name} is ready`,
            () => this.#alive_or_fail() && status_of(`http://127.0.0.1:${this.port}/readyz`), 200)
    }

    // Signals it and returns how it ended: an exit code or the signal's name.
    async end(signal) {
        if (this.process.exitCode === null && this.process.signalCode === null) {
            const ended = once(this.process, 'exit')
            this.process.kill(signal)
            await ended
        }
        return this.process.exitCode ?? this.process.signalCode
    }

    // The sum of a metric's samples whose labels match.
    async metric(name, labels = '') {
        const text = await (await fetch(`http://127.0.0.1:${this.port}/metrics`)).text()
        return text.split('\n')
            .filter((line) => line.startsWith(name) && /^[{ ]/.test(line.slice(name.length)) &&
                line.includes(labels))
            .reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
    }

    #alive_or_fail() {
        if (this.process.exitCode !== null) {
            throw new Error(`${this.name} ended with ${this.process.exitCode}, see its log`)
        }
        return true
    }
}

class proxy_process {
    constructor(its_house, name, port, reload_signal, program, words) {
        Object.assign(this, { house: its_house, name, port, reload_signal, program, words })
    }

    async start() {
        this.process = await this.house.start_process(this.name, this.program, this.words)
        // fetch knows no private authority; that something does TLS there is all that is asked.
        await within(10_000, `${this.name} listens`,
            () => this.#alive_or_fail() && status_of(`https://127.0.0.1:${this.port}/`),
            'DEPTH_ZERO_SELF_SIGNED_CERT')
    }

    reload() {
        this.process.kill(this.reload_signal)
    }

    // The master and its workers, which share its process group.
    async kill() {
        const ended = once(this.process, 'exit')
        process.kill(-this.process.pid, 'SIGKILL')
        await ended
    }

    #alive_or_fail() {
        if (this.process.failure || this.process.exitCode !== null) {
            throw new Error(`${this.name} does not run: ` +
                `${this.process.failure?.message ?? this.process.exitCode}, see its log`)
        }
        return true
    }
}
