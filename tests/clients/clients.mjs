import { anycable_client } from './anycable_client.mjs'
import { plugin_client } from './plugin_client.mjs'
import { rails_client } from './rails_client.mjs'

// Each: subscribe(params) -> identifier, resend, unsubscribe, close; record (what was on the wire)
// and events (what the library told its user: "connected <identifier>", "rejected ...").
export const clients = [rails_client, anycable_client, plugin_client]
