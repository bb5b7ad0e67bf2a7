// Ends what a test run started, however the run ends: it reads from the run what there is, and
// when the run closes the pipe or dies, it kills those process groups, and removes the PostgreSQL
// and the directory with the logs.
import { spawnSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { createInterface } from 'node:readline'

const groups = new Set()
let directory = null
let postgres = null

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {}) // the end of the pipe says when
}

function kill(group) {
    try {
        process.kill(-group, 'SIGKILL')
    } catch (error) {
        if (error.code !== 'ESRCH') {
            console.error(`janitor: cannot kill process group ${group}: ${error.message}`)
        }
    }
}

const lines = createInterface({ input: process.stdin })
lines.on('line', (line) => {
    const [verb, ...words] = line.split(' ')
    if (verb === 'started') {
        groups.add(Number(words[0]))
    } else if (verb === 'ended') {
        groups.delete(Number(words[0]))
    } else if (verb === 'directory') {
        directory = words[0]
    } else if (verb === 'keep') {
        directory = null
    } else if (verb === 'postgres') {
        postgres = words // the script, the directory
    }
})
lines.on('close', () => {
    groups.forEach(kill)
    if (postgres !== null) {
        const [script, place] = postgres
        const removed = spawnSync(script, ['temp-remove', place], { encoding: 'utf8' })
        if (removed.status !== 0) {
            console.error(`janitor: ${removed.stderr}`)
            process.exitCode = 1
        }
    }
    if (directory !== null) {
        rmSync(directory, { recursive: true, force: true })
    }
})
