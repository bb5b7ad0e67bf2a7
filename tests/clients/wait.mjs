// Waiting: by asking again until a deadline, never by sleeping and hoping.
import { setTimeout as sleep } from 'node:timers/promises'

// Milliseconds between two questions: what is soon there is soon seen, and the rest does not keep
// the machine busy.
const pause_after = (waited) => (waited < 500 ? 20 : 100)

// Asks until the answer is `wanted` (or, of a function, until that says so); returns the
// milliseconds it took. Fails with the last answer.
export async function within(limit, what, ask, wanted = true) {
    const is_it = typeof wanted === 'function' ? wanted : (answer) => answer === wanted
    const start = performance.now()
    for (;;) {
        const answer = await ask()
        const took = performance.now() - start
        if (is_it(answer)) {
            return took
        }
        if (took > limit) {
            const expected = typeof wanted === 'function' ? '' : `, expected ${show(wanted)}`
            throw new Error(`${what}: still ${show(answer)} after ${limit} ms${expected}`)
        }
        await sleep(pause_after(took))
    }
}

// Asks for that long, and fails as soon as the answer is not `wanted`.
export async function holds_for(length, what, ask, wanted = true) {
    const end = performance.now() + length
    while (performance.now() < end) {
        const answer = await ask()
        if (answer !== wanted) {
            throw new Error(`${what}: ${show(answer)}, expected ${show(wanted)} all the time`)
        }
        await sleep(100)
    }
}

function show(value) {
    return typeof value === 'string' ? `"${value}"` : JSON.stringify(value)
}
