// One client: Action Cable's commands in, a row for each confirmed subscription.
import { randomBytes } from 'node:crypto'
import * as database from './database.mjs'

const channels = new Set(['AgentChannel', 'Collavre::AgentChannel'])
export const live = new Map() // token -> its connection, of confirmed subscriptions

export class connection {
    unanswered = 0 // WebSocket pings since the last pong
    #socket
    #owner
    #held = new Map() // identifier -> { agent, token }, undefined while it is pending
    #last = Promise.resolve() // commands of one client take effect in order

    constructor(socket, owner) {
        this.#socket = socket
        this.#owner = owner
        socket.on('message', (data) => this.#on_message(data))
        socket.on('pong', () => (this.unanswered = 0))
        socket.on('close', () => this.#in_order(() => this.#release_all()))
        socket.on('error', () => {}) // a close follows
        this.#send({ type: 'welcome' })
    }

    disconnect(reason, reconnect) {
        this.#send({ type: 'disconnect', reason, reconnect })
        this.#socket.close(1000)
    }

    // When the rows are gone.
    get released() {
        return this.#last
    }

    #send(message) {
        this.#socket.send(JSON.stringify(message))
    }

    #in_order(work) {
        this.#last = this.#last.then(work).catch(() => this.#socket.terminate())
    }

    #on_message(data) {
        let command, identifier, params
        try {
            ({ command, identifier } = JSON.parse(data))
            params = JSON.parse(identifier) ?? {}
        } catch {
            return
        }
        if (command === 'subscribe' && !this.#held.has(identifier)) {
            this.#held.set(identifier, undefined)
            this.#in_order(() => this.#subscribe(identifier, params))
        } else if (command === 'unsubscribe') {
            this.#in_order(() => this.#release(identifier))
        }
    }

    async #subscribe(identifier, params) {
        if (this.#socket.readyState !== this.#socket.OPEN) {
            return
        }
        const { channel, agent_id: agent, session_id: session = null } = params
        const token = randomBytes(16).toString('base64url')
        const is_made = channels.has(channel) && /^[1-9][0-9]{0,17}$/.test(agent) &&
            await database.subscribe(agent, this.#owner, token, session)
        if (is_made) {
            this.#held.set(identifier, { agent, token })
            live.set(token, this)
            this.#send({ identifier, type: 'confirm_subscription' })
        } else {
            this.#held.delete(identifier)
            this.#send({ identifier, type: 'reject_subscription' })
        }
    }

    async #release(identifier) {
        const subscription = this.#held.get(identifier)
        if (subscription) {
            this.#held.delete(identifier)
            live.delete(subscription.token)
            await database.unsubscribe(subscription.agent, subscription.token)
        }
    }

    async #release_all() {
        for (const identifier of [...this.#held.keys()]) {
            await this.#release(identifier)
        }
    }
}
