#!/usr/bin/env python3
"""The judge on small histories made by hand: a good one, and each promise broken once."""
import unittest

from judge import Judge, Spans

AGENT = 7
BASE = 1_700_000_000.0  # the database's clock at second 0 of the run


class History:
    """A run of one node and one process of clients; snapshots every 0.1 s say what `rows` holds."""

    def __init__(self, nodes=1):
        self.events = []
        self.rows = {}        # token: (agent, u, node, last_seen)
        self.seen = {}
        self.flags = set()
        self.seen_flags = set()
        self.pending_flips = []
        self.flip_number = 0
        self.silent_flips = False
        self.ticking = True
        self.at(0, "run", seed=1, nodes=nodes, heartbeat=1500, stale_after=4500, sweep=500,
                ping=300, peer_timeout=3000)
        self.at(0, "listening")
        for n in range(nodes):
            self.at(0, "node", n=n, boot=1, clock="+0")
            self.at(0, "ready", n=n, boot=1)
        self.at(0, "clients", p=1, slot=0)
        self.at(0, "start")
        self.t = 0.0

    def at(self, t, event, /, **fields):
        self.events.append({"e": event, "t": t, **fields})

    def put(self, token, u="1.1", agent=AGENT, node="n0", flag=True, last_seen=None):
        self.rows[token] = [agent, u, node, BASE + (self.t if last_seen is None else last_seen)]
        if flag and agent not in self.flags:
            self.flip(agent, True)

    def drop(self, token, flag=True):
        agent = self.rows.pop(token)[0]
        if flag and not any(r[0] == agent for r in self.rows.values()):
            self.flip(agent, False)

    def flip(self, agent, active, reason=None):
        (self.flags.add if active else self.flags.discard)(agent)
        self.flip_number += 1
        reason = reason or ("subscribed" if active else "disconnected")
        self.pending_flips.append([self.flip_number, agent, active, reason, BASE + self.t])

    def run(self, until, renew=True):
        """Snapshots until then; every row is renewed each second while `renew`."""
        while self.t < until - 1e-9:
            self.t = round(self.t + 0.1, 3)
            if renew and round(self.t * 10) % 10 == 0:
                for r in self.rows.values():
                    r[3] = BASE + self.t - 0.05
            self.snap()

    def snap(self):
        e = {"t1": self.t + 0.002, "db": str(BASE + self.t + 0.001)}
        now = {k: tuple(v) for k, v in self.rows.items()}
        e["add"] = [[k, *v[:3], str(v[3])] for k, v in now.items() if k not in self.seen]
        e["seen"] = [[k, str(v[3])] for k, v in now.items()
                     if k in self.seen and v[3] != self.seen[k][3]]
        e["gone"] = [k for k in self.seen if k not in now]
        e["on"] = sorted(self.flags - self.seen_flags)
        e["off"] = sorted(self.seen_flags - self.flags)
        e["flips"] = [f[:4] + [str(f[4])] for f in self.pending_flips]
        if self.ticking:
            e["clock"] = [str(BASE + self.t - 0.01), str(BASE + self.t + 1), "-Infinity", ""]
        self.at(self.t, "snap", **e)
        for f in self.pending_flips:
            if not self.silent_flips:
                us = round((f[4] - BASE) * 1e6)
                at = f"2023-11-14T22:13:{20 + us // 1_000_000:02d}.{us % 1_000_000:06d}Z"
                self.at(self.t + 0.003, "notify",
                        of={"agent_id": f[1], "active": f[2], "reason": f[3], "at": at})
        self.seen, self.seen_flags, self.pending_flips = now, set(self.flags), []

    def connect(self, s="1.1", node=0, p=1):
        self.at(self.t + 0.001, "connect", s=s, c=1, n=node, p=p, k=0)
        self.at(self.t + 0.005, "welcome", s=s)

    def subscribe(self, u="1.1", s="1.1", agent=AGENT, token="tok", node=0, p=1):
        """Connects, subscribes and is confirmed within 30 ms."""
        t = self.t
        self.connect(s, node, p)
        self.at(t + 0.006, "subscribe", s=s, u=u, a=agent)
        self.put(token, u, agent, f"n{node}")
        self.at(t + 0.030, "confirm", s=s, u=u)

    def fault(self, kind, since, until, target=0, what=None):
        number = str(len(self.events))
        self.at(since, "fault", kind=kind, target=target, id=number)
        if what is not None:
            self.at(since, "locked", kind=kind, id=number, what=what)
        self.at(until, "over", kind=kind, target=target, id=number)

    def verdict(self):
        judge = Judge()
        for e in sorted(self.events, key=lambda e: e["t"]):
            judge.feed(e)
        judge.verdict()
        return judge

    def broken(self):
        return sorted({v[0] for v in self.verdict().violations})


class Promises(unittest.TestCase):
    def good(self):
        h = History()
        h.run(1)
        h.subscribe()
        h.run(3)
        return h

    def test_a_session_that_comes_and_goes_breaks_nothing(self):
        h = self.good()
        h.at(3.0, "close", s="1.1")
        h.drop("tok")
        h.at(3.01, "closed", s="1.1", code=1000)
        h.run(6)
        h.at(6, "end")
        self.assertEqual(h.broken(), [])

    # P1

    def test_p1_a_row_without_its_flag(self):
        h = History()
        h.run(1)
        h.at(1.001, "connect", s="1.1", c=1, n=0, p=1, k=0)
        h.at(1.005, "welcome", s="1.1")
        h.at(1.006, "subscribe", s="1.1", u="1.1", a=AGENT)
        h.put("tok", flag=False)
        h.at(1.03, "confirm", s="1.1", u="1.1")
        h.run(1.2)
        h.flip(AGENT, True)
        h.run(3)
        self.assertEqual(h.broken(), ["P1"])

    def test_p1_a_flag_without_a_row_for_a_moment(self):
        h = self.good()
        h.at(3.0, "unsubscribe", s="1.1", u="1.1")
        h.drop("tok", flag=False)
        h.run(3.1)
        h.flip(AGENT, False)
        h.run(5)
        self.assertEqual(h.broken(), ["P1"])

    def test_p1_rows_by_hand_are_followed_within_a_sweep(self):
        for lateness, verdict in ((0.4, []), (1.2, ["P1"])):
            h = History()
            h.run(1)
            h.put("by-hand-1", u="", flag=False, node="")
            h.at(1.01, "inserted", since=1.0, rows=[["by-hand-1", AGENT]])
            h.run(1 + lateness, renew=False)
            h.flip(AGENT, True, "reconciled")
            h.run(5.9, renew=False)
            h.drop("by-hand-1")
            h.run(7)
            self.assertEqual(h.broken(), verdict, lateness)

    def test_p1_rows_by_hand_excuse_no_other_agent(self):
        h = self.good()
        h.at(3.01, "inserted", since=3.0, rows=[["by-hand-1", AGENT + 1]])
        h.drop("tok", flag=False)
        h.at(3.0, "unsubscribe", s="1.1", u="1.1")
        h.run(3.2)
        h.flip(AGENT, False)
        h.run(5)
        self.assertEqual(h.broken(), ["P1"])

    def test_p1_a_flip_without_a_notification(self):
        h = History()
        h.run(2)
        h.silent_flips = True
        h.subscribe()
        h.run(6)
        self.assertEqual(h.broken(), ["P1"])

    def test_p1_two_flips_in_one_direction(self):
        h = self.good()
        h.flip(AGENT, True)
        h.run(4)
        self.assertEqual(h.broken(), ["P1"])

    # P2

    def test_p2_a_closed_session_leaves_its_row(self):
        for lasts, verdict in ((0.8, []), (1.5, ["P2"])):
            h = self.good()
            h.at(3.0, "close", s="1.1")
            h.run(3 + lasts, renew=False)
            h.drop("tok")
            h.run(6)
            self.assertEqual(h.broken(), verdict, lasts)

    def test_p2_an_unsubscribe_before_the_answer_leaves_a_row(self):
        h = History()
        h.run(1)
        h.at(1.001, "connect", s="1.1", c=1, n=0, p=1, k=0)
        h.at(1.005, "welcome", s="1.1")
        h.at(1.006, "subscribe", s="1.1", u="1.1", a=AGENT)
        h.at(1.007, "unsubscribe", s="1.1", u="1.1")
        h.put("tok")
        h.run(5, renew=False)
        h.drop("tok")
        h.run(6)
        self.assertEqual(h.broken(), ["P2"])

    def test_p2_a_frozen_node_makes_the_row_of_what_was_taken_back_late(self):
        for lasts, verdict in ((0.1, []), (6.5, ["P2"])):
            h = History(nodes=2)
            h.run(1)
            h.connect()
            h.fault("node_frozen", 1.1, 7.0)
            h.at(1.2, "subscribe", s="1.1", u="1.1", a=AGENT)
            h.at(1.3, "unsubscribe", s="1.1", u="1.1")
            h.run(7.0)
            h.put("tok")
            h.run(7.0 + lasts, renew=False)
            h.drop("tok")
            h.run(14)
            self.assertEqual(h.broken(), verdict, lasts)

    def test_p2_a_row_comes_late_although_nothing_was_frozen(self):
        h = History(nodes=2)
        h.run(1)
        h.connect()
        h.fault("wire_hole", 1.1, 30.0)
        h.at(1.2, "subscribe", s="1.1", u="1.1", a=AGENT)
        h.at(1.3, "unsubscribe", s="1.1", u="1.1")
        h.run(12.0)
        h.put("tok")
        h.run(17.0, renew=False)
        h.drop("tok")
        h.run(20)
        self.assertIn("P2", h.broken())

    def test_p2_a_node_that_could_not_hear_of_the_end_renews_once_more_and_is_killed(self):
        for rounds, verdict in ((1, []), (3, ["P2"])):
            h = History(nodes=2)
            h.run(1)
            h.subscribe()
            h.run(3)
            h.fault("door_hole", 2.95, 12.0)
            h.at(3.0, "close", s="1.1")
            h.run(3 + rounds)
            h.at(3.0 + rounds, "fault", kind="node_killed", target=0, id="k")
            h.run(8.1 + rounds, renew=False)
            h.drop("tok")
            h.run(13)
            self.assertEqual(h.broken(), verdict, rounds)

    def test_p2_a_killed_process_leaves_rows(self):
        h = self.good()
        h.at(3.0, "killed", p=1)
        h.run(4.5, renew=False)
        h.drop("tok")
        h.run(6)
        self.assertEqual(h.broken(), ["P2"])

    def test_p2_a_frozen_client_keeps_its_row(self):
        for lasts, verdict in ((3.8, []), (4.5, ["P2"])):
            h = self.good()
            h.at(3.0, "frozen", p=1)
            h.run(3 + lasts)
            h.drop("tok")
            h.run(8)
            h.at(8.0, "thawed", p=1)
            h.at(8.01, "disconnect", s="1.1", reason="no_pong", reconnect=True)
            h.run(9)
            self.assertEqual(h.broken(), verdict, lasts)

    def test_p2_what_was_sent_into_a_hole_is_a_sign_of_life_when_it_ends(self):
        h = self.good()
        h.fault("door_hole_up", 3.0, 5.0)
        h.at(4.5, "mute", s="1.1")
        h.run(8.8)
        h.drop("tok")
        h.run(12)
        self.assertEqual(h.broken(), [])

    def test_p2_the_rows_of_a_killed_node_stay(self):
        for lasts, verdict in ((5.1, []), (6.0, ["P2"])):
            h = History(nodes=2)
            h.run(1)
            h.subscribe()
            h.run(3)
            h.at(3.0, "fault", kind="node_killed", target=0, id="k")
            h.at(3.01, "closed", s="1.1", code=1006)
            h.run(3 + lasts, renew=False)
            h.drop("tok")
            h.run(10)
            self.assertEqual(h.broken(), verdict, lasts)

    def test_p2_an_outage_makes_the_deadline_count_anew(self):
        h = self.good()
        h.at(3.0, "close", s="1.1")
        h.fault("database_stopped", 3.01, 6.0)
        h.ticking = False
        h.run(6.0, renew=False)
        h.ticking = True
        h.run(8.0, renew=False)
        h.drop("tok")
        h.run(9)
        self.assertEqual(h.broken(), [])

    def test_p2_a_deadline_moves_by_the_stalls_recorded_and_no_further(self):
        for stall, verdict in ((0.7, []), (0.2, ["P2"])):
            h = self.good()
            h.at(3.0, "close", s="1.1")
            h.at(3.2, "stall", who="n0", **{"for": stall})
            h.run(4.5, renew=False)
            h.drop("tok")
            h.run(6)
            judge = h.verdict()
            self.assertEqual(sorted({v[0] for v in judge.violations}), verdict, stall)
            self.assertEqual(bool(judge.slack_used), not verdict)

    def test_p2_what_is_left_at_the_end(self):
        h = self.good()
        h.at(3.05, "end")
        self.assertEqual(h.broken(), ["P2"])

    def test_p2_no_ticks_although_nothing_is_wrong(self):
        h = self.good()
        h.ticking = False
        h.run(5)
        h.ticking = True
        h.run(6)
        self.assertEqual(h.broken(), ["P2"])

    def test_p2_a_snapshot_that_takes_long_is_no_reason_to_misplace_its_tick(self):
        for frozen, verdict in ((True, []), (False, ["P2"])):
            h = self.good()
            if frozen:
                h.fault("database_frozen", 3.11, 6.1)
            h.t = 3.1
            h.snap()
            h.events[-1].update(t1=6.12, db=str(BASE + 6.11),
                                clock=[str(BASE + 6.1), str(BASE + 7.1), "-Infinity", ""])
            h.t = 6.1
            h.run(8)
            self.assertEqual(h.broken(), verdict, frozen)

    # P3

    def test_p3_a_row_is_reaped_while_its_client_answers(self):
        h = self.good()
        h.drop("tok")
        h.run(3.5)
        h.at(3.5, "disconnect", s="1.1", reason="lease_lost", reconnect=True)
        h.run(5)
        self.assertEqual(h.broken(), ["P3"])

    def test_p3_a_row_is_reaped_after_an_outage(self):
        h = self.good()
        h.fault("database_stopped", 3.0, 9.0)
        h.ticking = False
        h.run(9.0, renew=False)
        h.ticking = True
        h.run(9.3, renew=False)
        h.drop("tok")
        h.at(9.5, "disconnect", s="1.1", reason="lease_lost", reconnect=True)
        h.run(11)
        self.assertEqual(h.broken(), ["P3"])

    def test_p3_an_outage_of_all_does_not_add_to_that_of_one(self):
        for alone_until, verdict in ((6.0, ["P3"]), (9.0, [])):
            h = History(nodes=2)
            h.run(1)
            h.subscribe()
            h.run(3)
            h.fault("wire_refused", 3.0, alone_until)
            h.run(alone_until, renew=False)
            h.fault("table_locked", alone_until, alone_until + 3, what=["table"])
            h.ticking = False
            h.run(alone_until + 3.1, renew=False)
            h.ticking = True
            h.drop("tok")
            h.run(alone_until + 3.2)
            h.at(alone_until + 3.2, "disconnect", s="1.1", reason="lease_lost", reconnect=True)
            h.run(alone_until + 4)
            self.assertEqual(h.broken(), verdict, alone_until)

    def test_p3_a_node_that_is_cut_off_alone_loses_its_rows(self):
        h = History(nodes=2)
        h.run(1)
        h.subscribe()
        h.run(3)
        h.fault("wire_refused", 3.0, 9.0)
        h.run(7.5, renew=False)
        h.drop("tok")
        h.run(9.5)
        h.at(9.5, "disconnect", s="1.1", reason="lease_lost", reconnect=True)
        h.run(11)
        self.assertEqual(h.broken(), [])

    def test_p3_an_outage_is_over_when_a_row_is_renewed_whenever_its_end_is_written(self):
        for renewed, verdict in ((4.0, []), (3.2, ["P3"])):
            h = History(nodes=2)
            h.run(1)
            h.subscribe()
            h.run(3)
            h.fault("backend_killed", 3.0, 5.0)
            h.fault("wire_refused", 5.1, 10.0)
            h.run(renewed, renew=False)
            h.rows["tok"][3] = BASE + h.t
            h.run(renewed + 5.1, renew=False)
            h.drop("tok")
            h.run(10.2)
            h.at(10.2, "disconnect", s="1.1", reason="lease_lost", reconnect=True)
            h.run(11)
            self.assertEqual(h.broken(), verdict, renewed)

    def test_p3_a_lost_lease_takes_the_others_of_its_session_along(self):
        for by_hand, verdict in ((True, []), (False, ["P3", "P3"])):
            h = self.good()
            h.at(2.5, "subscribe", s="1.1", u="1.2", a=AGENT + 1)
            h.put("tok2", "1.2", AGENT + 1)
            h.at(3.05, "confirm", s="1.1", u="1.2")
            h.run(4)
            if by_hand:
                h.at(4.01, "deleted", since=4.0, rows=[["tok", AGENT, "1.1"]])
            h.drop("tok")
            if not by_hand:
                h.drop("tok2")
            h.run(5)
            h.at(5.0, "disconnect", s="1.1", reason="lease_lost", reconnect=True)
            if by_hand:
                h.drop("tok2")
            h.run(6)
            self.assertEqual([v[0] for v in h.verdict().violations], verdict)

    def test_p3_the_other_may_be_lost_right_before_the_last_snapshot_with_this_one(self):
        h = History(nodes=2)
        h.run(1)
        h.subscribe()
        h.at(1.1, "subscribe", s="1.1", u="1.2", a=AGENT + 1)
        h.put("tok2", "1.2", AGENT + 1)
        h.at(1.15, "confirm", s="1.1", u="1.2")
        h.run(3)
        h.fault("wire_refused", 3.0, 8.2)
        h.run(8.0, renew=False)
        h.rows["tok2"][3] = BASE + h.t
        h.drop("tok")
        h.run(8.1, renew=False)
        h.at(8.05, "disconnect", s="1.1", reason="lease_lost", reconnect=True)
        h.drop("tok2")
        h.run(9)
        self.assertEqual(h.broken(), [])

    def test_p3_who_cannot_hear_that_its_other_lease_was_lost(self):
        for hole, verdict in ((True, []), (False, ["P3"])):
            h = self.good()
            h.at(2.5, "subscribe", s="1.1", u="1.2", a=AGENT + 1)
            h.put("tok2", "1.2", AGENT + 1)
            h.at(3.05, "confirm", s="1.1", u="1.2")
            h.run(4)
            h.at(4.01, "deleted", since=4.0, rows=[["tok", AGENT, "1.1"]])
            h.drop("tok")
            if hole:
                h.fault("door_hole_down", 4.2, 8.0)
            h.run(5)
            h.drop("tok2")
            h.run(7)
            h.at(7.0, "kill", s="1.1")
            h.run(9)
            self.assertEqual([p for p in h.broken() if p == "P3"], verdict, hole)

    def test_p3_what_is_deleted_later_explains_nothing(self):
        h = self.good()
        h.at(2.5, "subscribe", s="1.1", u="1.2", a=AGENT + 1)
        h.put("tok2", "1.2", AGENT + 1)
        h.at(3.05, "confirm", s="1.1", u="1.2")
        h.fault("door_hole_down", 5.0, 5.15)
        h.run(5.1)
        h.drop("tok2")
        h.run(6)
        h.at(6.01, "deleted", since=6.0, rows=[["tok", AGENT, "1.1"]])
        h.drop("tok")
        h.at(6.3, "kill", s="1.1")
        h.run(9)
        self.assertIn("P3", h.broken())

    def test_p3_who_unsubscribed_before_its_session_lost_another_lease_has_lost_nothing(self):
        h = self.good()
        h.at(3.05, "unsubscribe", s="1.1", u="1.1")
        h.drop("tok")
        h.run(3.5)
        h.at(3.51, "subscribe", s="1.1", u="1.2", a=AGENT + 1)
        h.put("tok2", "1.2", AGENT + 1)
        h.at(3.55, "confirm", s="1.1", u="1.2")
        h.run(5)
        h.drop("tok2")  # nobody knows why
        h.run(6)
        h.at(6.0, "disconnect", s="1.1", reason="lease_lost", reconnect=True)
        h.run(7)
        blamed = [v[2] for v in h.verdict().violations]
        self.assertEqual(len(blamed), 1)
        self.assertIn("subscription 1.2", blamed[0])

    def test_p3_a_row_that_no_snapshot_saw_was_deleted_and_its_session_lost_the_other(self):
        h = self.good()
        h.at(3.02, "subscribe", s="1.1", u="1.2", a=AGENT + 1)
        h.at(3.03, "confirm", s="1.1", u="1.2")
        h.at(3.05, "deleted", since=3.04, rows=[["tok2", AGENT + 1, "1.2"]])
        h.run(4)
        h.at(4.01, "disconnect", s="1.1", reason="lease_lost", reconnect=True)
        h.drop("tok")
        h.run(6)
        self.assertNotIn("P3", h.broken())

    def test_p3_a_connection_is_lost_for_no_reason(self):
        for code in (1000, 1006):
            h = self.good()
            h.drop("tok")
            h.at(3.0, "closed", s="1.1", code=code)
            h.run(5)
            self.assertEqual(h.broken(), ["P3"], code)

    def test_p3_a_client_that_answers_is_called_silent(self):
        h = self.good()
        h.drop("tok")
        h.at(3.0, "disconnect", s="1.1", reason="no_pong", reconnect=True)
        h.run(5)
        self.assertEqual(h.broken(), ["P3"])

    def test_p3_a_drain_explains_nothing_of_sessions_that_came_after_it(self):
        for since, verdict in ((3.0, []), (0.5, ["P3"])):
            h = self.good()
            h.fault("node_drained", since, since + 0.2)
            h.fault("door_hole_down", 2.95, 5.0)
            h.run(3.1)
            h.drop("tok")
            h.run(5.5)
            h.at(5.5, "kill", s="1.1")
            h.run(7)
            self.assertEqual(h.broken(), verdict, since)

    def test_p3_a_row_goes_for_silence_that_is_too_short(self):
        for since, verdict in ((1.05, []), (1.4, ["P3"])):
            h = History()
            h.run(1)
            h.subscribe()
            h.at(since, "mute", s="1.1")
            h.run(3.0)
            h.drop("tok")
            h.at(3.1, "unmute", s="1.1")
            h.run(3.5)
            h.at(3.5, "kill", s="1.1")
            h.run(5)
            self.assertEqual(h.broken(), verdict, since)

    def test_p3_what_a_door_delays_is_no_silence(self):
        for kind, verdict in (("door_hole_up", []), ("door_delay", ["P3"])):
            h = History()
            h.run(1)
            h.subscribe()
            h.fault(kind, 1.05, 3.2)
            h.run(3.0)
            h.drop("tok")
            h.run(3.5)
            h.at(3.5, "kill", s="1.1")
            h.run(5)
            self.assertEqual(h.broken(), verdict, kind)

    def test_p3_who_is_told_late_could_not_be_told_before(self):
        for told, hole, verdict in ((3.7, False, []), (5.0, False, ["P3"]), (5.0, True, [])):
            h = self.good()
            h.at(2.0, "revoked", k=0)
            h.drop("tok")
            if hole:
                h.fault("door_hole_down", 3.3, 4.9)
            h.run(told)
            h.at(told, "disconnect", s="1.1", reason="token_expired", reconnect=False)
            h.run(told + 1)
            self.assertEqual(h.broken(), verdict, (told, hole))

    def test_p3_a_client_is_called_silent_too_soon(self):
        for since, verdict in ((1.05, []), (1.4, ["P3"])):
            h = History()
            h.run(1)
            h.subscribe()
            h.at(since, "frozen", p=1)
            h.run(3)
            h.drop("tok")
            h.at(3.05, "thawed", p=1)
            h.at(3.06, "disconnect", s="1.1", reason="no_pong", reconnect=True)
            h.run(5)
            self.assertEqual(h.broken(), verdict, since)

    def test_p3_who_holds_a_subscription_is_sent_away_too_soon(self):
        for until, verdict in ((15.5, []), (8.1, ["P3"])):
            h = History(nodes=2)
            h.run(1)
            h.subscribe()
            h.run(3)
            h.fault("wire_hole", 3.0, until)
            h.run(7.8, renew=False)
            h.drop("tok")
            h.run(until)
            h.at(until, "disconnect", s="1.1", reason="unavailable", reconnect=True)
            h.run(17)
            self.assertEqual(h.broken(), verdict, until)

    def test_p3_who_waits_for_its_first_row_is_sent_away_too_soon(self):
        for told, verdict in ((9.2, []), (5.0, ["P3"])):
            h = History()
            h.run(1)
            h.connect()
            h.at(1.1, "subscribe", s="1.1", u="1.1", a=AGENT)
            h.fault("agents_locked", 1.05, 9.5, what=[str(AGENT)])
            h.run(told)
            h.at(told, "disconnect", s="1.1", reason="unavailable", reconnect=True)
            h.run(10)
            self.assertEqual(h.broken(), verdict, told)

    # P4

    def test_p4_a_row_comes_back(self):
        h = self.good()
        row = h.rows["tok"]
        h.drop("tok")
        h.at(3.0, "unsubscribe", s="1.1", u="1.1")
        h.run(4)
        h.rows["tok"] = row
        h.flip(AGENT, True)
        h.run(4.1)
        h.drop("tok")
        h.run(5)
        self.assertIn("P4", h.broken())

    def test_p4_a_subscribe_that_is_not_confirmed_may_be_sent_again(self):
        h = History()
        h.run(1)
        h.at(1.001, "connect", s="1.1", c=1, n=0, p=1, k=0)
        h.at(1.002, "welcome", s="1.1")
        h.at(1.006, "subscribe", s="1.1", u="1.1", a=AGENT)
        h.fault("wire_hole_down", 1.0, 7.0)
        h.put("tok")
        row = h.rows["tok"]
        h.run(5.6, renew=False)
        h.drop("tok")
        h.run(7)
        h.rows["tok"] = row
        h.flip(AGENT, True)
        h.at(7.05, "confirm", s="1.1", u="1.1")
        h.run(8)
        self.assertEqual(h.broken(), [])

    def test_p4_a_row_that_was_deleted_is_there(self):
        h = self.good()
        row = list(h.rows["tok"])
        h.at(3.06, "deleted", since=3.05, rows=[["tok", AGENT, "1.1"]])
        h.run(3.3)
        h.rows["other"] = row
        h.at(3.2, "deleted", since=3.15, rows=[["other", AGENT, "1.1"]])
        h.run(4)
        self.assertIn("P4", h.broken())

    # P5

    def test_p5_nobody_tells_the_session_whose_row_was_deleted(self):
        for told, verdict in ((2.0, []), (3.5, ["P5"])):
            h = self.good()
            h.drop("tok")
            h.at(3.01, "deleted", since=3.0, rows=[["tok", AGENT, "1.1"]])
            h.run(3 + told)
            h.at(3 + told, "disconnect", s="1.1", reason="lease_lost", reconnect=True)
            h.run(8)
            self.assertEqual(h.broken(), verdict, told)

    # P6

    def test_p6_a_confirmation_without_a_row(self):
        h = History()
        h.run(1)
        h.at(1.001, "connect", s="1.1", c=1, n=0, p=1, k=0)
        h.at(1.005, "welcome", s="1.1")
        h.at(1.006, "subscribe", s="1.1", u="1.1", a=AGENT)
        h.at(1.03, "confirm", s="1.1", u="1.1")
        h.run(1.2)
        h.put("tok")
        h.run(3)
        self.assertEqual(h.broken(), ["P6"])

    def test_p6_a_verdict_is_heard_of_after_its_row_has_gone(self):
        h = History()
        h.run(1)
        h.at(0.5, "revoked", k=0)
        h.at(1.001, "connect", s="1.1", c=1, n=0, p=1, k=0)
        h.at(1.005, "welcome", s="1.1")
        h.at(1.006, "subscribe", s="1.1", u="1.1", a=AGENT)
        h.at(1.03, "confirm", s="1.1", u="1.1")
        h.run(1.3)
        h.at(1.4, "disconnect", s="1.1", reason="token_expired", reconnect=False)
        h.run(3)
        self.assertEqual(h.broken(), [])

    def test_p6_two_rows_of_one_subscription(self):
        h = self.good()
        h.put("second")
        h.run(5)
        self.assertEqual(h.broken(), ["P6"])

    def test_p6_two_confirmations(self):
        h = self.good()
        h.at(3.0, "confirm", s="1.1", u="1.1")
        h.run(5)
        self.assertEqual(h.broken(), ["P6"])

    # P7

    def test_p7_a_row_on_a_node_where_its_subscriber_is_not(self):
        h = History(nodes=2)
        h.run(1)
        h.at(1.001, "connect", s="1.1", c=1, n=0, p=1, k=0)
        h.at(1.005, "welcome", s="1.1")
        h.at(1.006, "subscribe", s="1.1", u="1.1", a=AGENT)
        h.put("tok", node="n1")
        h.at(1.03, "confirm", s="1.1", u="1.1")
        h.run(3)
        self.assertEqual(h.broken(), ["P7"])

    def test_p7_a_row_for_which_nobody_asked(self):
        h = self.good()
        h.put("tok2", u="9.9")
        h.run(4)
        self.assertIn("P7", h.broken())

    # P8

    def test_p8_a_time_by_a_clock_that_is_not_the_databases(self):
        h = self.good()
        h.rows["tok"][3] = BASE + 3600
        h.run(3.1, renew=False)
        self.assertEqual(h.broken(), ["P8"])

    # P9

    def test_p9_an_agent_that_is_locked_delays_another(self):
        for agent, verdict in ((AGENT, []), (AGENT + 1, ["P9"])):
            h = History()
            h.run(1)
            h.fault("agents_locked", 1.0, 4.0, what=[str(agent)])
            h.at(1.101, "connect", s="1.1", c=1, n=0, p=1, k=0)
            h.at(1.105, "welcome", s="1.1")
            h.at(1.106, "subscribe", s="1.1", u="1.1", a=AGENT)
            h.run(4.2)
            h.put("tok")
            h.at(4.25, "confirm", s="1.1", u="1.1")
            h.run(6)
            self.assertEqual(h.broken(), verdict, agent)

    def test_p9_pings_stop(self):
        h = self.good()
        h.at(3.0, "gap", s="1.1", **{"for": 1.9})
        self.assertEqual(h.broken(), ["P9"])

    def test_p9_who_is_not_welcome_yet_is_sent_no_pings(self):
        for welcome, verdict in ((False, []), (True, ["P9"])):
            h = History(nodes=2)
            h.fault("wire_hole", 0.9, 4.0)
            h.at(1.0, "connect", s="1.1", c=1, n=0, p=1, k=0)
            if welcome:
                h.at(1.01, "welcome", s="1.1")
            h.at(3.3, "gap", s="1.1", **{"for": 2.3})
            h.at(3.3, "kill", s="1.1")
            h.run(5)
            self.assertEqual(h.broken(), verdict, welcome)

    def test_p9_pings_stop_for_good(self):
        for told, verdict in ((False, ["P9"]), (True, [])):
            h = self.good()
            if told:
                h.fault("node_drained", 2.9, 6.0)
                h.at(3.0, "disconnect", s="1.1", reason="server_restart", reconnect=True)
            else:
                h.run(5.2)
            h.drop("tok")
            h.at(5.2, "gap", s="1.1", **{"for": 2.3})
            h.at(5.2, "kill", s="1.1")
            h.run(7)
            self.assertEqual(h.broken(), verdict, told)

    def test_p9_who_connects_is_answered(self):
        for lasts, answer, verdict in ((0.8, "welcome", []), (1.5, "welcome", ["P9"]),
                                       (2.2, "kill", ["P9"])):
            h = History()
            h.at(1.0, "connect", s="1.1", c=1, n=0, p=1, k=0)
            h.at(1.0 + lasts, answer, s="1.1")
            h.run(4)
            h.at(4.0, "close", s="1.1")
            self.assertEqual(h.broken(), verdict, (lasts, answer))

    def test_p9_who_connects_may_wait_for_the_database_of_its_node(self):
        for other, verdict in ((0, []), (1, ["P9"])):
            h = History(nodes=2)
            h.fault("wire_hole", 0.9, 2.0, target=other)
            h.at(1.0, "connect", s="1.1", c=1, n=0, p=1, k=0)
            h.at(2.2, "welcome", s="1.1")
            h.run(4)
            h.at(4.0, "close", s="1.1")
            self.assertEqual(h.broken(), verdict, other)

    # Beyond the nine

    def test_a_node_that_is_ready_once_more_has_not_been_starting(self):
        for starts, verdict in ((True, []), (False, ["P9"])):
            h = History()
            if starts:
                h.at(1.5, "node_exit", n=0, boot=1, code=0)
                h.at(1.6, "node", n=0, boot=2, clock="+0")
            h.at(2.0, "connect", s="1.1", c=1, n=0, p=1, k=0)
            h.at(2.01, "refused", s="1.1", status=503)
            h.at(5.0, "ready", n=0, boot=2 if starts else 1)
            h.run(6)
            self.assertEqual(h.broken(), verdict, starts)

    def test_a_revoked_token_ends_its_session(self):
        for end, verdict in ((20, []), (35, ["tokens"])):
            h = self.good()
            h.at(3.0, "revoked", k=0)
            h.run(3 + end)
            h.drop("tok")
            h.at(3 + end, "disconnect", s="1.1", reason="token_expired", reconnect=False)
            h.run(4 + end)
            self.assertEqual(h.broken(), verdict, end)

    def test_who_is_told_to_come_back(self):
        for reason, reconnect, verdict in (("server_restart", True, []),
                                           ("server_restart", False, ["wire"]),
                                           ("token_expired", False, []),
                                           ("token_expired", True, ["wire"])):
            h = self.good()
            h.at(2.8, "revoked", k=0)
            h.fault("node_drained", 2.9, 3.5)
            h.drop("tok")
            h.at(3.0, "disconnect", s="1.1", reason=reason, reconnect=reconnect)
            h.run(4)
            self.assertEqual(h.broken(), verdict, (reason, reconnect))

    def test_a_node_that_crashes_is_a_violation(self):
        h = self.good()
        h.at(3.0, "crash", n=0, boot=1, code=134, log="")
        self.assertIn("crash", h.broken())


class Parts(unittest.TestCase):
    def test_spans(self):
        s = Spans([(1, 2), (5, 7), (1.5, 3)])
        self.assertEqual(s.spans, [[1, 3], [5, 7]])
        self.assertEqual(s.first_touching(3.5, 4), None)
        self.assertEqual(s.first_touching(3.5, 6), [5, 7])
        self.assertAlmostEqual(s.covered(2, 6), 2)
        self.assertEqual(s.minus(Spans([(2, 6)])).spans, [[1, 2], [6, 7]])
        self.assertEqual((s & Spans([(2, 6)])).spans, [[2, 3], [5, 6]])

    def test_a_bug_is_caught_by_the_promise_that_it_breaks(self):
        h = Promises().good()
        h.at(3.2, "confirm", s="1.1", u="1.1")
        h.flip(AGENT, True)
        h.run(5)
        judge = h.verdict()
        self.assertEqual(judge.first_of(["P4", "P6"])[:2], ("P6", 3.2))
        self.assertEqual(judge.first_of(["P1"])[0], "P1")
        self.assertEqual(judge.first_of(["P4"]), None)

    def test_a_stall_that_several_have_seen_counts_once(self):
        h = History()
        h.at(2.0, "stall", who="n0", **{"for": 0.5})
        h.at(2.2, "stall", who="driver", **{"for": 0.5})
        h.at(4.0, "stall", who="db", **{"for": 0.25})
        h.fault("database_crashed", 6.0, 6.5)
        h.at(5.5, "stall", who="db", **{"for": 0.75})
        h.at(6.75, "stall", who="db", **{"for": 0.5})
        judge = h.verdict()
        self.assertAlmostEqual(judge.stalled(("driver", "n0"), 0, 3), 0.7)
        self.assertAlmostEqual(judge.stalled(("db",), 5, 9), 0.5)  # what comes before the crash
        self.assertAlmostEqual(judge.stalled(("driver", "db", "n0"), 2.5, 5), 0.45)


if __name__ == "__main__":
    unittest.main()
