// What one client did on the wire: a WebSocket class for it that notes sockets, frames and ends.
import WebSocket from 'ws'

export class record {
    sockets = [] // one entry a try: { socket, closed, code, error, frames }

    // A class for libraries that make their own sockets: new (url, protocols). `options` are those
    // of ws: headers, origin, ca, localAddress.
    socket_class(options) {
        const noted = this
        return class extends WebSocket {
            constructor(url, protocols) {
                super(url, protocols, options)
                noted.#note(this)
            }
        }
    }

    #note(socket) {
        const entry = { socket, closed: false, code: null, error: null, frames: [] }
        this.sockets.push(entry)
        socket.on('message', (data) => {
            entry.frames.push({ at: Date.now(), ...JSON.parse(data.toString()) })
        })
        socket.on('error', (error) => (entry.error = error.message))
        socket.on('close', (code) => {
            entry.closed = true
            entry.code = code
        })
    }

    get tries() {
        return this.sockets.length
    }

    get ended() {
        return this.sockets.filter((s) => s.closed).length
    }

    get frames() {
        return this.sockets.flatMap((s) => s.frames)
    }

    of_type(type) {
        return this.frames.filter((f) => f.type === type)
    }

    confirmations(identifier) {
        return this.#about('confirm_subscription', identifier)
    }

    rejections(identifier) {
        return this.#about('reject_subscription', identifier)
    }

    #about(type, identifier) {
        return this.of_type(type).filter((f) => f.identifier === identifier).length
    }
}
