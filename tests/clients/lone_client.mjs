// A client in a process of its own, to be killed: node lone_client.mjs TITLE OPTIONS PARAMS, the
// latter two in JSON. Prints "confirmed" once it is.
import { clients } from './clients.mjs'
import { within } from './wait.mjs'

const [title, options, params] = process.argv.slice(2)
const client_class = clients.find((c) => c.title === title)
const client = new client_class(JSON.parse(options))
const identifier = client.subscribe(JSON.parse(params))
await within(10_000, 'confirmed', () => client.record.confirmations(identifier), 1)
console.log('confirmed')
