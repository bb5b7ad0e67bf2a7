#!/usr/bin/env python3
"""Holds the history of a run against the promises, P1 to P9, and says which broke, where and when.

Knows nothing of how presenced works: it is told what was done to nodes, clients, network and
database, what clients heard, and what the database looked like in one snapshot after another.

A history is one JSON object a line; "e" says what, "t" when (seconds since the start). Who is who:
n a node, boot one life of it, p a process of clients, s a session (one socket), u a subscription
(its session_id in the database), a an agent, k an access token.

  run      seed, timings in ms               start, calm, leave, left, end   phases of the run
  node     n boot clock: started             ready, node_exit (code), crash (code, log), stuck
  clients  p: a process of clients started   killed, frozen, thawed: p
  fault    kind target id: begins            over: has been undone
  locked   id what: agents or tokens         deleted, inserted: since, rows [[token, agent, u]...]
  revoked  k                                 stall: who could not run, and for how long
  connect  s n p k                           welcome, refused (status), close, kill, closed (code),
                                             mute, unmute, gap (for): s
           disconnect s reason reconnect
  subscribe s u a                            again, unsubscribe, confirm, reject: s u
  snap     t to t1; db: its clock; add [[token, agent, u, node, last_seen]...], gone [token...],
           seen [[token, last_seen]...], on and off [agent...], flips [[id, agent, active, reason,
           at]...], clock [ticked_at, judge_until, amnesty_until, swept_at]: what has changed
  listening, deaf: the observer's connection  notify: a payload

Deadlines. A bound counts from the moment since which nothing that it depends on was disturbed: each
disturbance that touches it makes it count anew from that one's end and the recovery that belongs
to it. The machine is not the product's fault either: a deadline moves by the stalls that were
recorded before it, and by nothing else; how much of that was needed is part of the verdict. P1, P4,
P6, P7 and P8 are exact.
"""
import argparse
import bisect
import collections
import datetime
import gc
import itertools
import json
import sys

# From the end of a disturbance until what it touched works as before, in seconds.
RECOVERY = {
    "node": 1.0,      # thawed: works off what has piled up
    "wire": 1.5,      # connects again, and makes sure that its old session is over
    "database": 1.5,  # the same, everybody at once
    "door": 0.7,
    "lock": 1.3,      # busy agents are tried again after up to a second
}
PROMPT = 1.0          # what ends in front of a node is off within this
SWEEP_GRACE = 0.25    # for the sweep's own work, and for where its rounds fall
TOKEN_LIMIT = 30.0
NO_PONG_MARGIN = 0.1  # for the server's timers, and for what was on its way
UNREACHABLE_LIMIT = 12.0  # stage.cpp sets it
SUBSCRIBE_LIMIT = 8.0     # server/cable/cable_connection.cpp

HOLES = {"door_hole", "door_hole_up"}  # nothing reaches the node, nobody is told


class Spans:
    """Intervals of time, merged."""

    def __init__(self, spans=()):
        self.spans = []
        for a, b in sorted(spans):
            if self.spans and a <= self.spans[-1][1]:
                self.spans[-1][1] = max(self.spans[-1][1], b)
            else:
                self.spans.append([a, b])
        self.starts = [s[0] for s in self.spans]
        self.sums = None

    def first_touching(self, a, b):
        """The first one that has a part in [a, b], or None."""
        i = bisect.bisect_right(self.starts, a) - 1
        if i >= 0 and self.spans[i][1] > a:
            return self.spans[i]
        if i + 1 < len(self.spans) and self.spans[i + 1][0] <= b:
            return self.spans[i + 1]
        return None

    def touches(self, a, b):
        return self.first_touching(a, b) is not None

    def covered(self, a, b):
        """How much of [a, b] they cover."""
        return self.until(b) - self.until(a) if b > a else 0.0

    def until(self, t):
        if self.sums is None:
            self.sums = [0.0, *itertools.accumulate(b - a for a, b in self.spans)]
        i = bisect.bisect_right(self.starts, t)
        if i == 0:
            return 0.0
        a, b = self.spans[i - 1]
        return self.sums[i - 1] + min(t, b) - a

    def part(self, a, b):
        """Those that have a part in [a, b]."""
        return Spans(map(tuple, self.slice(a, b)))

    def slice(self, a, b):
        i = max(bisect.bisect_right(self.starts, a) - 1, 0)
        return self.spans[i:bisect.bisect_right(self.starts, b)]

    def __or__(self, other):
        return Spans([*map(tuple, self.spans), *map(tuple, other.spans)])

    def __and__(self, other):
        both = []
        for a, b in self.spans:
            for c, d in other.spans:
                if c >= b:
                    break
                if d > a:
                    both.append((max(a, c), min(b, d)))
        return Spans(both)

    def minus(self, other):
        left = []
        for a, b in self.spans:
            while a < b:
                hit = other.first_touching(a, b)
                if hit is None or hit[0] >= b:
                    left.append((a, b))
                    break
                if hit[0] > a:
                    left.append((a, hit[0]))
                a = hit[1]
        return Spans(left)


NOTHING = Spans()


def touches(many, a, b):
    """The same for several at once, without merging them."""
    return any(spans.touches(a, b) for spans in many)


class Session:
    __slots__ = ("s", "n", "p", "k", "t", "boot", "welcome", "refused", "disconnect", "closed",
                 "by_client", "mutes", "gaps", "subs", "ended_at", "ended_how", "silent",
                 "troubled", "unheard")

    def __init__(self, e):
        self.s, self.n, self.p, self.k, self.t = e["s"], e["n"], e["p"], e.get("k", 0), e["t"]
        self.boot = self.silent = self.troubled = self.unheard = None
        self.welcome = self.refused = self.disconnect = self.closed = self.by_client = None
        self.mutes, self.gaps, self.subs = [], [], []
        self.ended_at = self.ended_how = None


class Subscription:
    __slots__ = ("u", "s", "a", "t", "confirmed", "confirms", "rejected", "unsubscribed", "rows")

    def __init__(self, e):
        self.u, self.s, self.a, self.t = e["u"], e["s"], e["a"], e["t"]
        self.confirmed = self.rejected = self.unsubscribed = None
        self.confirms = 0
        self.rows = []


class Row:
    """One row's life as the snapshots show it."""
    __slots__ = ("token", "a", "u", "node", "last_seen", "first", "renewed", "last", "gone",
                 "gone_db", "absent")

    def __init__(self, token, agent, u, node, last_seen, snap):
        self.token, self.a, self.u, self.node, self.last_seen = token, agent, u, node, last_seen
        self.first = (snap["t"], snap["t1"])
        self.renewed = snap["t1"]  # end of the first snapshot with its newest last_seen
        self.last = snap["t"]    # start of the last snapshot that has it
        self.gone = None         # (start of the last with it, end of the first without it)
        self.gone_db = None      # the database's clock in that one
        self.absent = None       # and its start


class Judge:
    def __init__(self):
        self.violations = []      # (promise, time, text)
        self.seed = "?"
        self.counts = collections.Counter()
        self.faults_by_kind = collections.Counter()
        self.slack_used = []      # (seconds, text)
        self.judged = collections.Counter()
        self.timings = {}
        self.sessions, self.subs, self.rows_by_token = {}, {}, {}
        self.faults, self.open_faults = [], {}
        self.locks = {}
        self.boots = collections.defaultdict(list)   # n: [start, ready, dead]
        self.processes = {}                          # p: start, killed
        self.frozen = collections.defaultdict(list)  # p: spans
        self.stall_events = collections.defaultdict(list)
        self.foreign = collections.defaultdict(list)  # agent: [(since, t)] rows by others
        self.deleted = {}                             # token: (since, t)
        self.deleted_u = {}
        self.revoked = collections.defaultdict(list)
        self.live = {}                                # token: Row, as of the last snapshot
        self.rows_of = collections.Counter()          # agent: rows
        self.flags = set()
        self.wrong_since = {}                         # agent: (t of first wrong snapshot, its t1)
        self.returned = []                            # (row, absent at, back at, text)
        self.wrong = []                               # (agent, first t, last t, flag)
        self.snap_starts, self.snap_ends = [], []
        self.snap_t1 = 0.0
        self.ticks = []
        self.clock_ahead = None                       # of the history's
        self.last_flip = {}                           # agent: (id, active)
        self.flips = {}                               # (agent, at us): (active, reason, snap t)
        self.notified = []
        self.listening = []                           # spans
        self.marks = {}
        self.restart_ok = collections.defaultdict(list)

    def blame(self, promise, t, text):
        self.violations.append((promise, t, text))

    # ---- Reading ------------------------------------------------------------------------------

    def feed(self, e):
        self.counts["events"] += 1
        what = getattr(self, "on_" + e["e"], None)
        if what:
            what(e)
        elif e["e"] in ("start", "calm", "leave", "left", "end"):
            self.marks[e["e"]] = e["t"]

    def on_run(self, e):
        self.seed = e["seed"]
        self.timings = {k: e[k] / 1000 for k in
                        ("heartbeat", "stale_after", "sweep", "ping", "peer_timeout")}
        self.nodes = e["nodes"]

    def on_node(self, e):
        self.boots[e["n"]].append({"boot": e["boot"], "start": e["t"], "ready": None, "dead": None})

    def on_ready(self, e):
        life = self.boots[e["n"]][-1]
        if life["ready"] is None:  # it is asked again when all is calm
            life["ready"] = e["t"]

    def died(self, n, t):
        if self.boots[n] and self.boots[n][-1]["dead"] is None:
            self.boots[n][-1]["dead"] = t

    def on_node_exit(self, e):
        self.died(e["n"], e["t"])
        if e["code"] not in (0, 1, 137):
            self.blame("crash", e["t"], f"node {e['n']} ended with {e['code']}")

    def on_crash(self, e):
        self.died(e["n"], e["t"])
        self.blame("crash", e["t"], f"node {e['n']} ended by itself with {e['code']}")

    def on_stuck(self, e):
        self.blame("shutdown", e["t"], f"node {e['n']} did not end when told to")

    def on_not_ready(self, e):
        self.blame("P5", e["t"], "a node is not ready although nothing is wrong any more")

    def on_not_observed(self, e):
        self.blame("history", e["t"], "the database could not be looked at once all had left")

    def on_clients(self, e):
        self.processes[e["p"]] = [e["t"], None]

    def on_killed(self, e):
        self.processes[e["p"]][1] = e["t"]

    def on_frozen(self, e):
        self.frozen[e["p"]].append([e["t"], float("inf")])

    def on_thawed(self, e):
        if self.frozen[e["p"]]:
            self.frozen[e["p"]][-1][1] = e["t"]

    def on_fault(self, e):
        if not e["id"].startswith("end"):
            self.faults_by_kind[e["kind"]] += 1
        f = {"kind": e["kind"], "target": e["target"], "from": e["t"], "to": float("inf")}
        self.faults.append(f)
        self.open_faults[(e["kind"], e["id"])] = f
        if e["kind"] == "node_killed":
            self.died(e["target"], e["t"])
        if e["kind"] == "node_drained":
            self.restart_ok[e["target"]].append(e["t"])

    def on_over(self, e):
        f = self.open_faults.pop((e["kind"], e["id"]), None)
        if f:
            f["to"] = e["t"]

    def on_locked(self, e):
        f = self.open_faults.get((e["kind"], e["id"]))
        if f:
            f["what"] = e["what"]

    def on_stall(self, e):
        self.stall_events[e["who"]].append((e["t"], e["for"]))

    def on_deleted(self, e):
        for token, agent, u in e["rows"]:
            self.deleted[token] = (e["since"], e["t"])
            if u:
                self.deleted_u[u] = (e["since"], e["t"])
            self.foreign[agent].append((e["since"], e["t"]))

    def on_inserted(self, e):
        for _, agent in e["rows"]:
            self.foreign[agent].append((e["since"], e["t"]))

    def on_revoked(self, e):
        self.revoked[e["k"]].append(e["t"])

    def on_connect(self, e):
        self.sessions[e["s"]] = Session(e)
        self.counts["sessions"] += 1

    def session(self, e):
        return self.sessions.get(e["s"])

    def on_welcome(self, e):
        self.session(e).welcome = e["t"]

    def on_refused(self, e):
        self.session(e).refused = (e["t"], e["status"])
        self.counts["refused"] += 1

    def on_disconnect(self, e):
        for_good = e["reason"] in ("unauthorized", "token_expired")
        if e["reconnect"] == for_good:
            self.blame("wire", e["t"], f"session {e['s']} was told {e['reason']} and "
                                       f"{'' if e['reconnect'] else 'not '}to come back")
        if self.session(e).disconnect is None:
            self.session(e).disconnect = (e["t"], e["reason"])
        self.counts["told " + e["reason"]] += 1

    def on_closed(self, e):
        if self.session(e).closed is None:
            self.session(e).closed = (e["t"], e["code"])

    def on_close(self, e):
        if self.session(e).by_client is None:
            self.session(e).by_client = (e["t"], e["e"])

    on_kill = on_close

    def on_mute(self, e):
        self.session(e).mutes.append([e["t"], float("inf")])

    def on_unmute(self, e):
        if self.session(e).mutes:
            self.session(e).mutes[-1][1] = e["t"]

    def on_gap(self, e):
        self.session(e).gaps.append((e["t"], e["for"]))

    def on_subscribe(self, e):
        self.subs[e["u"]] = Subscription(e)
        self.session(e).subs.append(e["u"])
        self.counts["subscribes"] += 1

    def on_confirm(self, e):
        sub = self.subs.get(e["u"])
        self.counts["confirms"] += 1
        if sub is None:
            self.blame("wire", e["t"], f"confirmation of {e['u']!r}, which nobody asked for")
            return
        sub.confirms += 1
        if sub.confirms > 1:
            self.blame("P6", e["t"], f"subscription {sub.u} was confirmed {sub.confirms} times")
        else:
            sub.confirmed = e["t"]

    def on_reject(self, e):
        if e["u"] in self.subs:
            self.subs[e["u"]].rejected = e["t"]
        self.blame("wire", e["t"], f"subscription {e['u']} of an own agent was rejected")

    def on_unsubscribe(self, e):
        if e["u"] in self.subs:
            self.subs[e["u"]].unsubscribed = e["t"]

    def on_listening(self, e):
        self.listening.append([e["t"], float("inf")])

    def on_deaf(self, e):
        if self.listening:
            self.listening[-1][1] = e["t"]

    def on_notify(self, e):
        self.counts["notifications"] += 1
        self.notified.append((e["t"], e["of"]))

    # ---- Snapshots: P1, P4, P6, P7, P8 need nothing else ----------------------------------------

    def on_snap(self, e):
        self.counts["snapshots"] += 1
        self.snap_starts.append(e["t"])
        self.snap_ends.append(e["t1"])
        now = float(e["db"])
        # The database's clock is that of this machine. A snapshot that took long, say because the
        # database was frozen in the midst of it, does not tell when it was read.
        if self.clock_ahead is None or e["t1"] - e["t"] < 0.1:
            self.clock_ahead = now - e["t1"]
        touched = set()
        for token in e.get("gone", ()):
            row = self.live.pop(token)
            row.last = self.snap_starts[-2]
            row.gone = (row.last, e["t1"])
            row.gone_db, row.absent = now, e["t"]
            self.rows_of[row.a] -= 1
            touched.add(row.a)
        for token, agent, u, node, last_seen in e.get("add", ()):
            self.add_row(e, now, token, agent, u, node, float(last_seen))
            touched.add(agent)
        for token, last_seen in e.get("seen", ()):
            self.live[token].last_seen = float(last_seen)
            self.live[token].renewed = e["t1"]
            self.check_clock(e, now, float(last_seen), f"row {token}: last_seen_at")
        for agent in e.get("on", ()):
            self.flags.add(agent)
            touched.add(agent)
        for agent in e.get("off", ()):
            self.flags.discard(agent)
            touched.add(agent)
        for flip in sorted(e.get("flips", ())):
            self.on_flip(e, now, *flip)
            touched.add(flip[1])
        if "clock" in e:
            ticked, judge, amnesty, swept = e["clock"]
            if ticked not in ("", "-Infinity"):
                self.ticks.append(float(ticked) - self.clock_ahead)
                self.check_clock(e, now, float(ticked), "presence_clock.ticked_at")
            if swept:
                self.check_clock(e, now, float(swept), "nodes.swept_at")
        for agent in touched:
            self.compare(e, agent)
        self.snap_t1 = e["t1"]

    def add_row(self, e, now, token, agent, u, node, last_seen):
        self.check_clock(e, now, last_seen, f"row {token}: last_seen_at")
        old = self.rows_by_token.get(token)
        if old is not None:
            absent = self.snap_starts[-2]
            self.returned.append((old, absent, e["t1"], f"row {token} of agent {agent} is back; "
                                                        f"it was gone by {old.gone[1]:.3f}"))
        row = Row(token, agent, u, node, last_seen, e)
        self.rows_by_token[token] = row
        self.live[token] = row
        self.rows_of[agent] += 1
        self.counts["rows"] += 1
        if token in self.deleted and old is None and self.deleted[token][1] < e["t"]:
            self.returned.append((row, self.deleted[token][0], e["t1"],
                                  f"row {token} of agent {agent} is there; it was deleted at "
                                  f"{self.deleted[token][1]:.3f}"))
        if not u:
            if not token.startswith("by-hand-") and old is None:
                self.blame("P4", e["t1"], f"row {token} of agent {agent} belongs to nobody")
            return
        sub = self.subs.get(u)
        if sub is None:
            # Its line may stand below this one: the driver and the clients write side by side.
            self.early = getattr(self, "early", [])
            self.early.append(row)
            return
        self.assign(row, sub)

    def assign(self, row, sub):
        sub.rows.append(row)
        if len({r.token for r in sub.rows}) > 1:
            self.blame("P6", row.first[1], f"subscription {sub.u} of agent {sub.a} has two rows")
        if row.a != sub.a:
            self.blame("P6", row.first[1], f"subscription {sub.u} is of agent {sub.a}, its row of "
                                           f"{row.a}")
        session = self.sessions[sub.s]
        if row.node != f"n{session.n}" or row.first[1] < sub.t:
            self.blame("P7", row.first[1], f"row of subscription {sub.u} is on {row.node}, its "
                                           f"subscriber on n{session.n} since {sub.t:.3f}")

    def check_clock(self, e, now, value, what):
        if value > now:
            self.blame("P8", e["t1"], f"{what} is {value - now:.3f} s in the future")

    def on_flip(self, e, now, number, agent, active, reason, at):
        self.counts["flips"] += 1
        self.check_clock(e, now, float(at), f"transition {number}: at")
        before = self.last_flip.get(agent)
        if before is None or number > before[0]:
            if active == (before[1] if before else False):
                self.blame("P1", e["t1"], f"agent {agent} was turned {'on' if active else 'off'} "
                                          f"twice in a row (transition {number})")
            self.last_flip[agent] = (number, active)
        else:
            self.blame("P1", e["t1"], f"transition {number} of agent {agent} came after "
                                      f"{before[0]}")
        self.flips[(agent, round(float(at) * 1e6))] = (active, reason, e["t"])

    def compare(self, e, agent):
        flag = agent in self.flags
        if flag != (self.rows_of[agent] > 0):
            self.wrong_since.setdefault(agent, (e["t"], e["t1"], flag))
        elif agent in self.wrong_since:
            t, t1, was = self.wrong_since.pop(agent)
            self.wrong.append((agent, t, t1, self.snap_starts[-2], was))
        if flag != self.last_flip.get(agent, (0, False))[1]:
            self.blame("P1", e["t1"], f"agent {agent} is {'on' if flag else 'off'}, and its last "
                                      f"transition says otherwise")

    # ---- What was disturbed, and when -----------------------------------------------------------

    def spans_of(self, kinds, target=None, recovery=0.0):
        return Spans((f["from"], f["to"] + recovery) for f in self.faults
                     if f["kind"] in kinds and (target is None or f["target"] == target))

    def settle(self):
        """Everything has been read: works out who was disturbed when."""
        for row in self.live.values():
            row.last = self.snap_starts[-1]
        for row in getattr(self, "early", []):
            if row.u in self.subs:
                self.assign(row, self.subs[row.u])
            else:
                self.blame("P7", row.first[1], f"row {row.token} of subscription {row.u}, for "
                                               f"which nobody asked")
        for agent, (t, t1, was) in self.wrong_since.items():
            self.wrong.append((agent, t, t1, self.snap_starts[-1], was))
        kinds = {f["kind"] for f in self.faults}
        of = lambda prefix: {k for k in kinds if k.startswith(prefix)}
        database = of("database_") | {"backend_killed"}
        self.database = self.spans_of(database, None, RECOVERY["database"])
        self.database_itself = self.spans_of(database)
        self.table = self.spans_of({"table_locked"}, None, RECOVERY["lock"])
        self.table_itself = self.spans_of({"table_locked"})
        hang_up = self.spans_of({"hang_up"}, None, RECOVERY["wire"])
        end = float("inf")
        self.wire, self.door, self.hole, self.sick, self.sick_itself = {}, {}, {}, {}, {}
        self.any_hole, self.mute_for_node, self.not_ready = {}, {}, {}
        self.frozen_node, self.cut_off, self.draining, self.quiet, self.uneasy = {}, {}, {}, {}, {}
        self.unable = None
        self.unable_itself = None
        for n in range(self.nodes):
            self.wire[n] = self.spans_of(of("wire_"), n, RECOVERY["wire"]) | hang_up
            self.door[n] = self.spans_of(of("door_"), n, RECOVERY["door"])
            self.hole[n] = self.spans_of(HOLES, n)
            self.any_hole[n] = self.spans_of(of("door_hole"), n)
            self.frozen_node[n] = self.spans_of({"node_frozen"}, n)
            self.sick[n] = self.spans_of({"node_frozen"}, n, RECOVERY["node"]) | self.wire[n]
            self.cut_off[n] = self.sick[n] | self.database | self.table
            self.draining[n] = self.spans_of({"node_drained"}, n)
            self.sick_itself[n] = (self.frozen_node[n]
                                   | self.spans_of(of("wire_") - {"wire_cut"}, n))
            # Not there at all, between two lives of it.
            away, since = [], 0.0
            for life in self.boots[n]:
                ready = next(x for x in (life["ready"], life["dead"], end) if x is not None)
                away.append((since, ready + 0.5))
                since = life["dead"] if life["dead"] is not None else end
            if since < end:
                away.append((since, end))
            self.not_ready[n] = Spans(away)
            unable = self.sick[n] | Spans(away) | self.draining[n]
            itself = self.sick_itself[n] | Spans(away)
            self.unable = unable if self.unable is None else self.unable & unable
            self.unable_itself = (itself if self.unable_itself is None
                                  else self.unable_itself & itself)
        self.cuts = {n: sorted(f["from"] for f in self.faults if f["target"] == n
                               and f["kind"] in ("door_cut", "door_refused"))
                     for n in range(self.nodes)}
        self.partings = {n: sorted(self.cuts[n] + self.restart_ok[n]) for n in range(self.nodes)}
        self.agent_locks = collections.defaultdict(list)
        self.row_locks = collections.defaultdict(list)
        for f in self.faults:
            into = {"agents_locked": self.agent_locks, "rows_locked": self.row_locks}.get(f["kind"])
            if into is not None:
                for what in f.get("what", ()):
                    into[str(what)].append((f["from"], f["to"] + RECOVERY["lock"]))
        self.agent_locks = {a: Spans(s) for a, s in self.agent_locks.items()}
        self.row_locks = {t: Spans(s) for t, s in self.row_locks.items()}
        self.global_outage = self.database | self.table | self.unable
        # Nobody's fault in particular: time in which no node could renew.
        self.common = self.database_itself | self.table_itself | self.unable_itself
        # Shorter ones are within what a lease has to spare.
        self.gaps = Spans((a, b) for a, b in self.common.spans
                          if b - a > 2 * self.timings["sweep"] + 0.3)
        # Stalls that the faults explain are not the machine's.
        blamed = {"db": self.database | self.table}
        for p, spans in self.frozen.items():
            blamed[f"p{p}"] = Spans((a, b + 0.1) for a, b in spans)
        self.stalls = {}
        for who, events in self.stall_events.items():
            spans = []
            for t, length in events:
                hit = blamed.get(who, NOTHING).first_touching(t, t + length)
                if hit is None or hit[0] > t:  # what came before the fault is
                    spans.append((t, t + length if hit is None else hit[0]))
            self.stalls[who] = Spans(spans)
        self.frozen = {p: Spans(map(tuple, s)) for p, s in self.frozen.items()}
        for session in self.sessions.values():
            self.place(session)
        for sub in self.subs.values():
            session = self.sessions[sub.s]
            sub_end = min((x for x in (sub.unsubscribed, session.ended_at) if x is not None),
                          default=None)
            if sub.confirmed is not None and sub_end is None:
                self.counts["open at the end"] += 1

    def place(self, session):
        """Which life of its node it was on, when it ended, and by whose doing."""
        for life in self.boots[session.n]:
            if life["start"] <= session.t or session.boot is None:
                session.boot = life
        ends = []
        if session.by_client:
            ends.append((session.by_client[0], "client"))
        killed = self.processes.get(session.p, (0, None))[1]
        if killed is not None:
            ends.append((killed, "client"))
        if session.disconnect:
            ends.append((session.disconnect[0], session.disconnect[1]))
        if session.closed:
            ends.append((session.closed[0], "lost"))
        if session.refused:
            ends.append((session.refused[0], "refused"))
        if session.welcome is not None:
            # The node hears of that at once, whatever its client does.
            i = bisect.bisect_right(self.cuts[session.n], session.welcome)
            if i < len(self.cuts[session.n]):
                ends.append((self.cuts[session.n][i], "cut"))
        if ends:
            session.ended_at, session.ended_how = min(ends)

    def away(self, session):
        """From when on the process that it was connected to is dead."""
        dead = session.boot["dead"] if session.boot else None
        return NOTHING if dead is None else Spans([(dead, float("inf"))])

    @staticmethod
    def starting(session):
        """Whether its node was not ready yet when it connected."""
        return session.boot is not None and (session.boot["ready"] is None or
                                             session.t <= session.boot["ready"])

    def silence(self, session):
        """When nothing came from its client, whatever the reason."""
        key = (session.p, session.n)
        if key not in self.quiet:
            self.quiet[key] = self.frozen.get(session.p, NOTHING) | self.hole[session.n]
        if not session.mutes:
            return self.quiet[key]
        if session.silent is None:
            ping = self.timings["ping"]
            session.silent = self.quiet[key].part(*self.life(session)) | Spans(
                (a + ping, b) for a, b in session.mutes if b > a + ping)
        return session.silent

    def life(self, session):
        """From a minute before until a minute after all that there was of it."""
        ends = [row.last for u in session.subs for row in self.subs[u].rows]
        ends.append(session.ended_at if session.ended_at is not None else self.snap_t1)
        return session.t - 60, max(ends) + 60

    def silences(self, session, since, until):
        """The same, apart where a hole ended: what was sent into it arrives then."""
        ends = [b for _, b in self.hole[session.n].spans]
        for a, b in self.silence(session).part(since, until).spans:
            for end in ends[bisect.bisect_right(ends, a):bisect.bisect_left(ends, b)]:
                yield a, end
                a = end
            yield a, b

    def trouble(self, session):
        """When its client may not have been heard, or may not have heard."""
        key = (session.p, session.n)
        if key not in self.uneasy:
            self.uneasy[key] = self.door[session.n] | Spans(
                (a, b + 0.3) for a, b in self.frozen.get(session.p, NOTHING).spans)
        if not session.mutes:
            return self.uneasy[key]
        if session.troubled is None:
            session.troubled = self.uneasy[key].part(*self.life(session)) | Spans(
                (a, b + 0.3) for a, b in session.mutes)
        return session.troubled

    def unheard(self, session):
        """When its answers may not have arrived. What a door delays arrives."""
        key = (session.p, session.n)
        if key not in self.mute_for_node:
            self.mute_for_node[key] = self.any_hole[session.n] | self.frozen.get(session.p, NOTHING)
        if not session.mutes:
            return self.mute_for_node[key]
        if session.unheard is None:
            session.unheard = self.mute_for_node[key].part(*self.life(session)) | Spans(
                map(tuple, session.mutes))
        return session.unheard

    def longest_unheard(self, session, a, b):
        """At one stretch: after each, its client answers what has piled up."""
        return max((min(b, to) - max(a, since)
                    for since, to in self.unheard(session).part(a, b).spans), default=0.0)

    def no_pong_needs(self):
        """It was last heard up to a native ping before, which is a third of the time-out."""
        return self.timings["peer_timeout"] * 2 / 3 - NO_PONG_MARGIN

    def stalled(self, who, a, b):
        """A stall that several of them have seen is one stall."""
        return Spans(tuple(span) for w in who if w in self.stalls
                     for span in self.stalls[w].slice(a, b)).covered(a, b)

    def who(self, session):
        return ("driver", "db", f"n{session.n}", f"p{session.p}")

    def everybody(self):
        return ("driver", "db", *(f"n{i}" for i in range(self.nodes)))

    def deadline(self, since, need, disturbed, who=None):
        """When a bound that counts from `since` has run out, with the machine's stalls if it is
        said `who` may have had them. `disturbed` are any number of Spans."""
        t = since
        for _ in range(10_000):
            end = t + need
            if who is not None:
                for _ in range(20):
                    longer = t + need + self.stalled(who, t, end)
                    if longer <= end:
                        break
                    end = longer
            before = t
            for spans in disturbed:
                hit = spans.first_touching(t, end)
                if hit is not None:
                    t = max(t, hit[1])
            if t == before or t == float("inf"):
                return end if t == before else t
        return float("inf")

    def hold(self, promise, what, seen_at, since, need, disturbed, who, text):
        """Blames what was still so at `seen_at`, unless it was allowed to be."""
        self.judged[what] += 1
        bare = self.deadline(since, need, disturbed)
        if seen_at <= bare:
            return True
        late = self.deadline(since, need, disturbed, who)
        if seen_at <= late:
            self.slack_used.append((seen_at - bare, f"{what}: {text}"))
            return True
        self.blame(promise, seen_at, f"{text}; due {bare - since:.2f} s after {since:.3f}, with "
                                     f"stalls {late - since:.2f} s, seen after {seen_at - since:.2f} s")
        return False

    # ---- Verdict --------------------------------------------------------------------------------

    def verdict(self):
        self.settle()
        self.judge_flags()
        self.judge_notifications()
        self.judge_returned()
        self.judge_ticks()
        for sub in self.subs.values():
            self.judge_subscription(sub)
        for session in self.sessions.values():
            self.judge_session(session)
        self.judge_strangers()
        self.judge_end()
        self.violations.sort(key=lambda v: v[1])
        return not self.violations

    def locks_on(self, agent):
        return self.agent_locks.get(str(agent), NOTHING)

    def judge_flags(self):
        """P1: wrong flags are explained by what others did to rows, and only for a sweep."""
        for agent, first, first_t1, last, was in self.wrong:
            causes = [b for a, b in self.foreign[agent] if a <= first_t1]
            text = f"agent {agent} is {'on without a row' if was else 'off with a row'}"
            excused = False
            for t in causes:
                disturbed = (self.global_outage, self.locks_on(agent))
                need = self.timings["sweep"] + SWEEP_GRACE
                late = self.deadline(t, need, disturbed, self.everybody())
                if last <= late:
                    excused = True
                    bare = self.deadline(t, need, disturbed)
                    if last > bare:
                        self.slack_used.append((last - bare, text))
                    break
            self.judged["flags after rows by hand"] += 1
            if not excused:
                self.blame("P1", first_t1, f"{text}, from {first:.3f} to {last:.3f}"
                           + (", rows by hand at " + ", ".join(f"{c:.3f}" for c in causes[-3:])
                              if causes else ", and nobody else touched it"))

    def judge_notifications(self):
        """P1: a flip and its NOTIFY are one transaction."""
        told = set()
        for t, payload in self.notified:
            at = datetime.datetime.strptime(payload["at"], "%Y-%m-%dT%H:%M:%S.%fZ")
            at = at.replace(tzinfo=datetime.timezone.utc)
            us = round((at - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc))
                       / datetime.timedelta(microseconds=1))
            key = (payload["agent_id"], us)
            flip = self.flips.get(key)
            if flip is None:
                # The last ones may have come after the last snapshot.
                if t < self.snap_starts[-1] - 1:
                    self.blame("P1", t, f"NOTIFY of agent {key[0]} without a transition")
                continue
            if flip[0] != payload["active"] or flip[1] != payload["reason"]:
                self.blame("P1", t, f"NOTIFY of agent {key[0]} differs from its transition")
            told.add(key)
        heard = Spans(map(tuple, self.listening))
        for key, (_, _, t) in self.flips.items():
            if key not in told and heard.covered(t - 1, t + 2) >= 3 - 1e-9:
                if not self.database.touches(t - 1, t + 2):
                    self.blame("P1", t, f"agent {key[0]} flipped without a NOTIFY")

    def judge_returned(self):
        """P4: a confirmed row that is gone is gone. Before that, a subscribe may be sent again."""
        for row, absent, t, text in self.returned:
            sub = self.subs.get(row.u)
            if sub is None or sub.confirmed is not None and sub.confirmed < absent:
                self.blame("P4", t, text)

    def judge_ticks(self):
        """P2, P3: lease time runs while a node is well."""
        ticks = list(self.ticks)
        if ticks and "leave" in self.marks:
            t = self.marks["leave"]
            # As if there were one then: those that stop for good are missed, too.
            ticks = [tick for tick in ticks if tick <= t] + [t]
        for since, t in zip(ticks, ticks[1:]):
            gap = t - since
            if gap > 2 * self.timings["sweep"]:
                self.judged["gaps in the ticks"] += 1
                over = self.global_outage.covered(since, t)
                slack = self.stalled(self.everybody(), since, t)
                if gap > 2 * self.timings["sweep"] + over + slack:
                    self.blame("P2", t, f"no node ticked for {gap:.2f} s, in {over:.2f} s of which "
                                        f"none could (stalls {slack:.2f} s)")
                elif over > 0:
                    self.global_outage = self.global_outage | Spans([(since, t)])

    def judge_subscription(self, sub):
        session = self.sessions[sub.s]
        ended = min((x for x in (sub.unsubscribed, session.ended_at) if x is not None), default=None)
        row = sub.rows[0] if sub.rows else None
        self.judge_confirmation(sub, session, row, ended)
        self.judge_answer(sub, session, ended)
        for r in sub.rows:
            self.judge_ghost(sub, session, r, ended)
            # Before it is confirmed it may come and go: a subscribe may be sent again.
            if sub.confirmed is not None and r.gone is not None and r.gone[1] > sub.confirmed:
                self.judge_removal(sub, session, r, ended)
        if sub.confirmed is not None:
            self.judge_deafness(sub, session, ended)

    def judge_confirmation(self, sub, session, row, ended):
        """P6: by the time it is confirmed, it is a row."""
        if sub.confirmed is None or row is not None and row.first[0] <= sub.confirmed:
            return
        if sub.u in self.deleted_u:
            return
        i = bisect.bisect_right(self.snap_starts, sub.confirmed)
        if i == len(self.snap_starts):
            return
        t = self.snap_starts[i]
        self.judged["confirmations"] += 1
        if row is not None and row.first[0] <= t:
            return
        # It may have come and gone between two snapshots, or while the confirmation was on its way.
        if ended is not None and ended <= self.snap_ends[i] or touches(
                (self.trouble(session), self.sick[session.n]), sub.t, t):
            return
        # The server's own verdict removes the row first, and is heard of later.
        if session.disconnect is not None and session.disconnect[0] <= (
                self.snap_ends[i] + PROMPT + self.stalled(self.who(session), t, t + 2)):
            return
        self.blame("P6", t, f"subscription {sub.u} of agent {sub.a} was confirmed at "
                            f"{sub.confirmed:.3f} and has no row at {t:.3f}")

    def judge_answer(self, sub, session, ended):
        """P9: nobody waits for what is stuck elsewhere."""
        if sub.rejected is not None:
            return
        answered = sub.confirmed if sub.confirmed is not None else self.snap_t1
        if ended is not None and ended <= answered:
            answered = ended
        self.hold("P9", "answers to subscribes", answered, sub.t, PROMPT,
                  (self.cut_off[session.n], self.away(session), self.trouble(session),
                   self.locks_on(sub.a), self.draining[session.n]),
                  self.who(session), f"subscription {sub.u} of agent {sub.a} is not confirmed")

    def own_disturbances(self, session, row):
        return (self.cut_off[session.n], self.away(session), self.locks_on(row.a),
                self.row_locks.get(row.token, NOTHING))

    def judge_ghost(self, sub, session, row, ended):
        """P2: the row goes with its session."""
        text = f"row of subscription {sub.u} (agent {row.a}, node {session.n})"
        ways = []
        own = self.own_disturbances(session, row)
        lapse = self.timings["stale_after"] + self.timings["sweep"] + SWEEP_GRACE
        outage = (self.global_outage, self.locks_on(row.a),
                  self.row_locks.get(row.token, NOTHING))
        if ended is not None:
            how = "unsubscribe" if ended == sub.unsubscribed else session.ended_how
            text += f" is there after its end ({how})"
            ways.append((ended, PROMPT, (*own, self.door[session.n]), self.who(session)))
            lapses_from = max(ended, sub.t)
            # A node that was frozen makes the row of a subscribe from before late, and one that
            # could not hear of the end may renew it once more, for what it had heard before.
            if self.frozen_node[session.n].touches(sub.t, row.first[0]):
                lapses_from = max(lapses_from, row.first[0])
            if self.silence(session).touches(ended, ended):
                lapses_from = max(lapses_from,
                                  min(row.renewed, ended + self.timings["heartbeat"]))
            ways.append((lapses_from, lapse, outage, self.everybody()))
        silent_need = self.timings["peer_timeout"] + PROMPT
        for a, b in self.silences(session, row.first[1], row.last):
            # It has to happen within the silence; afterwards the client is back.
            a = max(a, row.first[1])
            if b - a > silent_need:
                if self.deadline(a, silent_need, own, self.who(session)) < b:
                    self.hold("P2", "silent clients", min(row.last, b), a, silent_need, own,
                              self.who(session), text + f" is there although nothing was "
                              f"heard of it from {a:.3f} to {b:.3f}")
        if ended is None:
            return
        if all(row.last <= self.deadline(*way[:3]) for way in ways):
            best = ways[0]  # nearly always, and cheaper than to look for it
        else:
            best = min(ways, key=lambda way: self.deadline(*way))
        self.hold("P2", "rows of ended sessions", row.last, *best, text)

    def judge_removal(self, sub, session, row, ended):
        """P3: a row whose client answers goes only by its client or by others' hands."""
        before, after = row.gone
        self.judged["removals"] += 1
        if row.token in self.deleted:
            return
        if ended is not None and ended <= after and (session.ended_how != "lease_lost"
                                                     or ended == sub.unsubscribed):
            return
        text = f"row of subscription {sub.u} (agent {row.a}, node {session.n}) was removed"
        unsure = (self.trouble(session), self.silence(session))
        # It shared its session with one that was lost first; of its end its client may have heard
        # nothing.
        if (session.ended_how == "lease_lost" and ended is not None or
                touches(unsure, before, after)) and any(
                u in self.deleted_u and self.deleted_u[u][0] <= after or any(
                    other.gone is not None and other.absent <= before
                    and not (self.subs[u].unsubscribed is not None
                             and self.subs[u].unsubscribed <= other.gone[1])
                    for other in self.subs[u].rows)
                for u in session.subs if u != sub.u):
            return
        if ended is not None and session.ended_how not in ("client", "cut", "lease_lost"):
            # The verdict on it came first, and its client heard of it later, as soon as it could.
            if session.ended_at <= self.deadline(after, PROMPT, unsure, self.who(session)):
                return  # judge_session asks whether it was right
        # It was there when all of its node were cut or sent away, and has not heard of that yet.
        partings = self.partings[session.n]
        i = bisect.bisect_left(partings, max(before - 6, session.t))
        if i < len(partings) and partings[i] <= after:
            return
        stale_after = self.timings["stale_after"]
        if touches(unsure, before - 1, after) and any(
                before - TOKEN_LIMIT - 5 <= t <= after for t in self.revoked[session.k]):
            return  # nor of the end of its token
        age = row.gone_db - row.last_seen
        a = after - max(age, stale_after + 0.5)
        slack = self.stalled((f"n{session.n}", f"p{session.p}", "driver"), a, after)
        if self.longest_unheard(session, a, after) + min(slack, 0.5) >= self.no_pong_needs():
            return  # the node may have given it up
        alone = (self.sick_itself[session.n].part(a, after) | self.away(session)).minus(self.common)
        impaired = alone.covered(a, after) + self.unheard(session).covered(a, after)
        if impaired < 1.0:
            if impaired + slack >= 1.0:
                self.slack_used.append((1.0 - impaired, text))
                return
            self.blame("P3", after, f"{text} although its client answered and its node could renew "
                                    f"(of the last {after - a:.1f} s it could not for "
                                    f"{impaired:.2f} s, stalls {slack:.2f} s)")
            return
        counted = age - self.gaps_since(after - age, after)
        if counted < stale_after - 0.1:
            self.blame("P3", after, f"{text} {age:.2f} s after its last renewal, in "
                                    f"{age - counted:.2f} s of which no node could renew")

    def gaps_since(self, renewed, after):
        """How long no node could renew. A gap in whose midst the row was renewed was over by then:
        its end is written when the driver has seen it, and the driver may be starved."""
        gap = self.gaps.first_touching(renewed, renewed)
        if gap is not None and gap[0] + 0.3 < renewed:
            renewed = max(renewed, gap[1])
        return self.gaps.covered(renewed, after)

    def judge_deafness(self, sub, session, ended):
        """P5: who was confirmed and has no row, any more or at all, is told."""
        if sub.u in self.deleted_u:
            gone = self.deleted_u[sub.u][1]
        elif not sub.rows:
            gone = sub.confirmed
        elif sub.rows[-1].gone is not None:
            gone = sub.rows[-1].gone[1]
        else:
            return
        gone = max(gone, sub.confirmed)
        if ended is not None and ended <= gone:
            return
        told = ended if ended is not None else self.marks.get("leave", self.snap_t1)
        disturbed = (self.cut_off[session.n], self.away(session), self.trouble(session),
                     self.silence(session))
        self.hold("P5", "lost rows", told, gone, self.timings["heartbeat"] + PROMPT, disturbed,
                  self.who(session), f"subscription {sub.u} (agent {sub.a}, node {session.n}) was "
                  f"not told that its row is gone")

    def judge_session(self, session):
        self.judge_connect(session)
        unsure = (self.trouble(session), self.silence(session))
        t, how = session.ended_at, session.ended_how
        if t is None or how in ("client", "cut"):
            self.judge_gaps(session, unsure)
            self.judge_token(session)
            return
        text = f"session {session.s} on node {session.n}"
        sick = self.cut_off[session.n]
        peer = self.timings["peer_timeout"]
        slack = self.stalled(self.who(session), t - peer - 1.5, t)
        restart = any(a - 0.001 <= t <= a + 12 for a in self.restart_ok[session.n])
        self.judged["ends by the server"] += 1
        if how == "no_pong":
            silent = self.longest_unheard(session, t - peer - 1.5, t)
            if silent + slack < self.no_pong_needs():
                self.blame("P3", t, f"{text} answered, and was ended as silent (for {silent:.2f} s "
                                    f"nothing may have been heard of it, stalls {slack:.2f} s)")
        elif how == "lease_lost":
            gone = [u for u in session.subs if u in self.deleted_u or
                    any(r.gone is not None and r.gone[0] <= t for r in self.subs[u].rows)]
            if not gone:
                self.blame("P3", t, f"{text} was told that its lease is lost, and its rows are "
                                    f"there")
        elif how == "server_restart":
            if not restart:
                self.blame("P3", t, f"{text} was told of a restart that nobody asked for")
        elif how in ("token_expired", "unauthorized"):
            if not any(a <= t for a in self.revoked[session.k]):
                self.blame("P3", t, f"{text} was told {how} with a good token")
        elif how == "unavailable":
            self.judge_unavailable(session, text)
        elif how == "too_slow":
            if (unsure[0].part(t - 20, t) | unsure[1].part(t - 20, t)).covered(t - 20, t) < 1:
                self.blame("P3", t, f"{text} was cut off as too slow")
        elif how == "refused":
            status = session.refused[1]
            revoked = any(a <= t for a in self.revoked[session.k])
            # A node listens before it has found its database, and says so.
            starting = status == 503 and self.starting(session)
            if not (starting or sick.touches(session.t - 7, t) or restart
                    or revoked and status == 429
                    or self.trouble(session).touches(session.t - 7, t)):
                if slack < 1:
                    self.blame("P9", t, f"{text} was refused with {status} and nothing was wrong")
        elif how == "lost":
            dead = session.boot["dead"] if session.boot else None
            if not (restart or self.starting(session) or dead is not None and dead <= t + 0.1
                    or self.door[session.n].touches(t - 7, t) or touches(unsure, t - 7, t)
                    or self.frozen_node[session.n].touches(t - 12, t)):
                self.blame("P3", t, f"{text} lost its connection (code {session.closed[1]}) and "
                                    f"nothing was wrong")
        else:
            self.blame("wire", t, f"{text} was told {how}")
        self.judge_gaps(session, unsure)
        self.judge_token(session)

    def judge_unavailable(self, session, text):
        """P3: who holds something is sent away only by a node that has been cut off for long, and
        who only waits, once he has waited for long."""
        t = session.ended_at
        open_subs = [self.subs[u] for u in session.subs if self.subs[u].unsubscribed is None
                     or self.subs[u].unsubscribed > t]
        slack = self.stalled(self.who(session), t - UNREACHABLE_LIMIT, t)
        sick = self.cut_off[session.n]
        if sick.covered(t - UNREACHABLE_LIMIT, t) + slack >= UNREACHABLE_LIMIT - 0.5:
            return
        if any(sub.confirmed is not None for sub in open_subs):
            self.blame("P3", t, f"{text}, which holds a subscription, was told unavailable, and of "
                                f"the last {UNREACHABLE_LIMIT:.0f} s its node was cut off for "
                                f"{sick.covered(t - UNREACHABLE_LIMIT, t):.2f} s only (stalls "
                                f"{slack:.2f} s)")
            return
        for sub in open_subs:
            stuck = (sick | self.locks_on(sub.a)).covered(sub.t, t)
            if stuck + slack >= SUBSCRIBE_LIMIT - PROMPT:
                return
        self.blame("P3", t, f"{text} was told unavailable, and nothing it waits for was in trouble "
                            f"for {SUBSCRIBE_LIMIT:.0f} s (stalls {slack:.2f} s)")

    def judge_connect(self, session):
        """P9: who connects is answered, one way or the other."""
        ends = [session.welcome, session.refused and session.refused[0],
                session.closed and session.closed[0], session.by_client and session.by_client[0],
                self.processes.get(session.p, (0, None))[1], self.snap_t1]
        answered = min(x for x in ends if x is not None)
        self.hold("P9", "answers to connects", answered, session.t, PROMPT,
                  (self.cut_off[session.n], self.not_ready[session.n], self.draining[session.n],
                   self.trouble(session)), self.who(session),
                  f"session {session.s} on node {session.n} is not answered")

    def judge_gaps(self, session, unsure):
        """P9: pings go on whatever is stuck elsewhere."""
        for t, gap in session.gaps:
            if session.welcome is None:
                continue  # judge_connect asks how long it waited
            ended = t if session.ended_at is None else min(t, session.ended_at)
            self.hold("P9", "gaps between pings", ended, t - gap, 2 * self.timings["ping"] + PROMPT,
                      (*unsure, self.frozen_node[session.n], self.away(session)),
                      self.who(session), f"session {session.s} on node {session.n} got no ping")

    def judge_token(self, session):
        if session.welcome is None:
            return
        end = session.ended_at if session.ended_at is not None else self.snap_t1
        for revoked in self.revoked[session.k]:
            valid_again = next((f["to"] for f in self.faults if f["kind"] == "token_revoked"
                                and f["target"] + 1 == session.k and f["from"] <= revoked <= f["to"]),
                               float("inf"))
            if session.t < revoked < end:
                self.hold("tokens", "revoked tokens", min(end, valid_again), revoked, TOKEN_LIMIT,
                          (self.cut_off[session.n], self.away(session), self.trouble(session)),
                          self.who(session),
                          f"session {session.s} goes on with a revoked token")

    def judge_strangers(self):
        """P2: what others insert and nobody renews goes, too."""
        lapse = self.timings["stale_after"] + self.timings["sweep"] + SWEEP_GRACE
        for row in self.rows_by_token.values():
            if not row.u:
                self.hold("P2", "rows by hand", row.last, row.first[1], lapse,
                          (self.global_outage, self.locks_on(row.a),
                           self.row_locks.get(row.token, NOTHING)), self.everybody(),
                          f"row {row.token} of agent {row.a}, which nobody renews, is there")

    def judge_end(self):
        if "end" in self.marks:
            for token, row in self.live.items():
                self.blame("P2", self.marks["end"], f"row {token} of agent {row.a} "
                           f"({row.u or 'by hand'}) is left although everybody has gone")
            for agent in self.flags:
                self.blame("P2", self.marks["end"], f"agent {agent} is on although everybody has "
                                                    f"gone")

    def during(self, t):
        return [f"{f['kind']} {f['target']}" for f in self.faults if f["from"] <= t <= f["to"] + 2]

    def report(self, out, most=25):
        c = self.counts
        seconds = self.marks.get("end", self.snap_t1) - self.marks.get("start", 0)
        faults = sum(self.faults_by_kind.values())
        print(f"seed {self.seed}: {seconds:.0f} s, {c['events']} events, {faults} faults, "
              f"{c['snapshots']} snapshots, {len(self.violations)} violations", file=out)
        print("  faults: " + ", ".join(f"{k} {n}" for k, n in sorted(self.faults_by_kind.items())),
              file=out)
        told = ", ".join(f"{k[5:]} {n}" for k, n in sorted(c.items()) if k.startswith("told "))
        print(f"  {c['sessions']} sessions ({c['refused']} refused), {c['subscribes']} subscribes, "
              f"{c['confirms']} confirmed, {c['rows']} rows, {c['flips']} flips, "
              f"{c['notifications']} notified; told: {told or 'nothing'}", file=out)
        print("  judged: " + ", ".join(f"{k} {n}" for k, n in sorted(self.judged.items())), file=out)
        most_used = max(self.slack_used, default=(0.0, ""))
        print(f"  for the machine's own stalls {len(self.slack_used)} deadlines were extended, by "
              f"{most_used[0]:.2f} s at most; recorded: "
              + ", ".join(f"{who} {sum(l for _, l in e):.1f} s"
                          for who, e in sorted(self.stall_events.items())
                          if not who.startswith("p")), file=out)
        broken = collections.Counter(v[0] for v in self.violations)
        for promise, n in sorted(broken.items()):
            print(f"  {promise} broken {n} times", file=out)
        for promise, t, text in self.violations[:most]:
            print(f"  {promise} at {t:.3f} s: {text}", file=out)
            print(f"     faults then: {', '.join(self.during(t)) or 'none'}", file=out)
        if len(self.violations) > most:
            print(f"  ... and {len(self.violations) - most} more", file=out)

    def first_of(self, promises):
        return next((v for v in self.violations if v[0] in promises), None)

    def was_idle(self):
        """A run in which nothing happened proves nothing."""
        c = self.counts
        return c["snapshots"] < 10 or c["confirms"] < 10 or "end" not in self.marks


def main():
    parser = argparse.ArgumentParser(description="Holds a history against the promises.")
    parser.add_argument("history")
    parser.add_argument("--first", metavar="PROMISES",
                        help="print the first violation of these (P4,P6), the seconds that it took "
                             "before it, and no more; fail when there is one")
    options = parser.parse_args()
    judge = Judge()
    gc.disable()  # millions of objects, and none of them garbage
    with open(options.history, encoding="utf-8") as lines:
        for line in lines:
            judge.feed(json.loads(line))
    if "run" not in judge.__dict__ and not judge.timings:
        print("judge: no history of a run", file=sys.stderr)
        return 2
    held = judge.verdict()
    if options.first:
        found = judge.first_of(options.first.split(","))
        if found:
            promise, t, text = found
            print(f"{t - judge.marks.get('start', 0):.1f} {promise} {text}")
        return 1 if found else 0
    judge.report(sys.stdout)
    if held and judge.was_idle():
        print("  too little happened for a verdict")
        return 2
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
