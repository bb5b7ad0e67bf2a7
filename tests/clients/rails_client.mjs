// @rails/actioncable 8, as in a browser's tab.
import { createRequire } from 'node:module'
import { record } from './record.mjs'

// What the library's connection monitor listens to in a browser: a tab that becomes visible.
globalThis.addEventListener ??= () => {}
globalThis.removeEventListener ??= () => {}

// The WebSocket class is a global of the module, and so every client loads a module of its own.
function load_module() {
    const require = createRequire(import.meta.url)
    const path = require.resolve('@rails/actioncable')
    delete require.cache[path]
    return require(path)
}

export class rails_client {
    static title = '@rails/actioncable'
    static unsubscribes = true

    record = new record()
    events = []
    #consumer
    #subscriptions = new Map()

    constructor({ url, token, ...options }) {
        const { adapters, createConsumer } = load_module()
        // A browser sends the Origin of its page.
        const origin = new URL(url).origin.replace(/^ws/, 'http')
        adapters.WebSocket = this.record.socket_class({ origin, ...options })
        this.#consumer = createConsumer(`${url}?token=${token}`)
    }

    subscribe(params) {
        const note = (what) => () => this.events.push(`${what} ${subscription.identifier}`)
        const subscription = this.#consumer.subscriptions.create(params, {
            connected: () => note('connected')(),
            rejected: () => note('rejected')(),
            disconnected: () => note('disconnected')(),
        })
        this.#subscriptions.set(subscription.identifier, subscription)
        return subscription.identifier
    }

    // What its guarantor does every 500 ms until the confirmation is there.
    resend(identifier) {
        this.#consumer.send({ command: 'subscribe', identifier })
    }

    unsubscribe(identifier) {
        this.#subscriptions.get(identifier).unsubscribe()
    }

    close() {
        this.#consumer.disconnect()
    }
}
