// A client that speaks like the Claude Channel plugin: subscribes on every welcome, never
// unsubscribes, never pings, kills a socket that was silent for 15 s, and reconnects after 1, 2,
// 4 ... 60 s, counted anew from every open. It does not look at `reconnect`.
import { record } from './record.mjs'

const silence_limit = 15_000
const longest_pause = 60_000

export class plugin_client {
    static title = 'plugin'
    static unsubscribes = false

    record = new record()
    events = []
    #url
    #socket_class
    #socket = null
    #identifiers = []
    #attempts = 0
    #watchdog = null
    #reconnect = null
    #stopped = false

    constructor({ url, token, origin, ...options }) {
        this.#url = `${url}?token=${token}`
        this.#socket_class = this.record.socket_class({
            origin: origin ?? `${new URL(url).origin.replace(/^ws/, 'http')}/`,
            ...options,
        })
        this.#connect()
    }

    subscribe({ channel, agent_id, ...rest }) {
        const identifier = JSON.stringify({ channel, agent_id, ...rest })
        this.#identifiers.push(identifier)
        if (this.#welcomed()) {
            this.resend(identifier)
        }
        return identifier
    }

    resend(identifier) {
        this.#socket.send(JSON.stringify({ command: 'subscribe', identifier }))
    }

    close() {
        this.#stopped = true
        clearTimeout(this.#reconnect)
        this.#socket.close()
    }

    #welcomed() {
        const { closed, frames } = this.record.sockets.at(-1)
        return !closed && frames.some((f) => f.type === 'welcome')
    }

    #connect() {
        const socket = new this.#socket_class(this.#url,
            ['actioncable-v1-json', 'actioncable-unsupported'])
        this.#socket = socket
        socket.on('open', () => {
            this.#attempts = 0
            this.#heard()
        })
        socket.on('message', (data) => {
            this.#heard()
            this.#on_frame(JSON.parse(data.toString()))
        })
        socket.on('close', () => {
            clearTimeout(this.#watchdog)
            if (!this.#stopped) {
                const pause = Math.min(1000 * 2 ** this.#attempts++, longest_pause)
                this.#reconnect = setTimeout(() => this.#connect(), pause)
            }
        })
    }

    #on_frame({ type, identifier }) {
        if (type === 'welcome') {
            this.#identifiers.forEach((i) => this.resend(i))
        } else if (type === 'confirm_subscription') {
            this.events.push(`connected ${identifier}`)
        } else if (type === 'reject_subscription') {
            this.events.push(`rejected ${identifier}`)
        }
    }

    #heard() {
        clearTimeout(this.#watchdog)
        this.#watchdog = setTimeout(() => this.#socket.terminate(), silence_limit)
    }
}
