// One psql that stays open, asked one question at a time: what the tests know of PostgreSQL.
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'

const end_of_answer = '--end of answer--'

export class database {
    #psql
    #waiting = []
    #rows = []
    #errors = ''

    constructor(url) {
        this.#psql = spawn('psql', ['--no-psqlrc', '--quiet', '--tuples-only', '--no-align', url],
            { stdio: ['pipe', 'pipe', 'pipe'] })
        createInterface({ input: this.#psql.stdout }).on('line', (line) => this.#on_line(line))
        this.#psql.stderr.setEncoding('utf8').on('data', (text) => (this.#errors += text))
        this.#psql.on('exit', () => {
            this.#waiting.forEach((w) => w.reject(new Error(`psql ended: ${this.#errors}`)))
        })
    }

    // The rows of one statement, each a list of texts.
    rows(sql) {
        return new Promise((resolve, reject) => {
            this.#waiting.push({ resolve, reject, sql })
            this.#psql.stdin.write(`${sql};\n\\echo ${end_of_answer}\n`)
        })
    }

    async value(sql) {
        return (await this.rows(sql))[0]?.[0]
    }

    // How many rows an agent has and whether its flag is on, as "1 on".
    async presence_of(agent) {
        const [[rows, flag]] = await this.rows(
            `select (select count(*) from agent_subscriptions where agent_id = ${agent}),
                    case when routing_active then 'on' else 'off' end
             from agents where id = ${agent}`)
        return `${rows} ${flag}`
    }

    // An agent needs no more than its owner.
    async new_agent(owner, name) {
        return Number(await this.value(
            `insert into agents (owner_id, name) values (${owner}, '${name}') returning id`))
    }

    close() {
        this.#psql.stdin.end()
    }

    #on_line(line) {
        if (line !== end_of_answer) {
            this.#rows.push(line.split('|'))
            return
        }
        const { resolve, reject, sql } = this.#waiting.shift()
        const rows = this.#rows
        this.#rows = []
        // stderr is a pipe of its own, so it may lag behind; an answer that is missing shows, too.
        if (this.#errors.includes('ERROR:')) {
            reject(new Error(`${this.#errors.trim()}\nin: ${sql}`))
            this.#errors = ''
        } else {
            resolve(rows)
        }
    }
}
