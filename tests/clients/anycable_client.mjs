// @anycable/core 1, with its token in a header and no Origin, as in a program.
import { createCable } from '@anycable/core'
import { record } from './record.mjs'

export class anycable_client {
    static title = '@anycable/core'
    static unsubscribes = true

    record = new record()
    events = []
    #cable
    #channels = new Map()

    constructor({ url, token, headers, ...options }) {
        this.#cable = createCable(url, {
            protocol: 'actioncable-v1-json',
            logLevel: 'error',
            websocketImplementation: this.record.socket_class({
                headers: { Authorization: `Bearer ${token}`, ...headers },
                ...options,
            }),
        })
    }

    subscribe({ channel: name, ...params }) {
        const channel = this.#cable.subscribeTo(name, params)
        const identifier = channel.identifier
        this.#channels.set(identifier, channel)
        channel.on('connect', () => this.events.push(`connected ${identifier}`))
        channel.on('disconnect', () => this.events.push(`disconnected ${identifier}`))
        channel.on('close', (error) => {
            if (error?.name === 'SubscriptionRejectedError') {
                this.events.push(`rejected ${identifier}`)
            }
        })
        return identifier
    }

    // What it does when there is no confirmation after 5 s.
    resend(identifier) {
        this.#cable.send({ command: 'subscribe', identifier })
    }

    unsubscribe(identifier) {
        this.#channels.get(identifier).disconnect()
        this.#channels.delete(identifier)
    }

    close() {
        this.#cable.disconnect()
    }
}
