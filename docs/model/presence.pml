/* Two nodes with a session each, both of one agent, and a database: the lease, the flag, the tick
 * and the sweep, under faults. README.md says what it means and leaves out; script/model runs it.
 *
 * Time is counted in heartbeats. It passes only when every node that was able to, throughout, has
 * renewed and done its work: that is what "in time" means here. Within a heartbeat whatever can
 * happen may happen in any order.
 *
 * Each BUG_ is a mistake that the checker has to find.
 */

#ifndef FAULTS
#define FAULTS 2                 /* cuts, crashes, freezes, kills, deletions by hand: in all */
#endif
#ifndef SESSIONS
#define SESSIONS 1               /* with one, the second node only renews, ticks and sweeps */
#endif
#define STALE 3                  /* stale_after */
#define JUDGE 1                  /* how long a tick allows verdicts */

mtype:node    = { up, frozen, dead };
mtype:session = { none, acquiring, abandoning, live, releasing, over };
mtype:call    = { idle, asked, done };
mtype:what    = { nothing, acquire, release };

/* ---- The database ------------------------------------------------------------------------- */

bool row[2];                     /* agent_subscriptions */
byte age[2];                     /* of last_seen_at, in lease time; STALE is as old as it gets */
bool flag;                       /* agents.routing_active */
byte since_tick;                 /* more than JUDGE: lease time stands still */
byte amnesty;                    /* how much of it is left */
bool begun[3];                   /* transactions under way: each session's one, and the sweep's */
byte holder;                     /* the one that has the agent's row lock, from 1 up; 0: none */

/* Calls that a broken connection has left behind: they run later, or never. */
mtype:what stray[2] = nothing;
bool stray_late[2];              /* its not_after has passed */
bool stray_renewal[2];

/* ---- The nodes ---------------------------------------------------------------------------- */

mtype:node node[2] = up;
bool linked[2] = true;           /* the network between node and database */
bool fresh[2];                   /* became able in the middle of this heartbeat */
bool renewed[2];                 /* has renewed, and ticked, in this heartbeat */
bool owes[2];                    /* its session has been due for a renewal for longer */
bool swept;

mtype:session session[2] = none;
bool connected[2];               /* the client is there, and answers */
mtype:call lane[2] = idle;       /* the session's call under way */
bool lane_releases[2];
bool lane_old[2];                /* asked before this heartbeat */
bool maybe_done[2];              /* an acquire was sent whose outcome nobody knows */

/* ---- What is watched ---------------------------------------------------------------------- */

byte faults;
bool confirmed[2];               /* the client was told that it is subscribed */
bool buried[2];                  /* confirmed, and its row was removed: never again (P4) */
byte away[2];                    /* heartbeats since its last renewal in which somebody ticked, and
                                    its node was not able throughout (P3) */
bool ticked;                     /* in this heartbeat, by whomever */
byte deaf[2];                    /* heartbeats in which an able node had a session without a row */

#define able(i)      (node[i] == up && linked[i])
#define was_able(i)  (able(i) && !fresh[i])
#define has_work(i)  (session[i] == acquiring || session[i] == releasing || \
                      (session[i] == abandoning && maybe_done[i]))
#define is_deaf(i)   (session[i] == live && connected[i] && !row[i])
#define is_stuck(i)  (stray[i] != nothing && !stray_late[i])
#define is_quiet     (!begun[0] && !begun[1] && !begun[2])
#ifdef BUG_NO_FENCE
#define is_fenced(i) true
#else
#define is_fenced(i) (!is_stuck(i))
#endif

inline finish(i) {
    session[i] = over;
    connected[i] = false;
    maybe_done[i] = false;
    owes[i] = false
}

inline forget_call(i) {
    lane[i] = idle;
    lane_releases[i] = false;
    lane_old[i] = false
}

inline forget_stray(i) {
    stray[i] = nothing;
    stray_late[i] = false
}

/* ---- Rows ----------------------------------------------------------------------------------- */

inline bury(i) {
    row[i] = false;
    age[i] = 0;
    away[i] = 0;
    buried[i] = buried[i] || confirmed[i]
}

inline refresh(i) {
    age[i] = 0;
    away[i] = 0
}

inline insert(i) {
    assert(!buried[i]);          /* P4: gone is gone */
    row[i] = true;
    refresh(i)
}

/* ---- Transactions: one function call each; `who` is its place in begun ------------------------ */

/* `judges` and `seen` are the transaction's own: whether the clock lets it reap, and the rows as it
 * sees them in READ COMMITTED: those committed when it looked, and its own changes. */

#ifdef BUG_NO_LOCK
#define IS_FREE true
#else
#define IS_FREE (holder == 0)
#endif

#ifdef BUG_WALL_CLOCK
#define READ_CLOCK judges = true
#else
#define READ_CLOCK judges = (amnesty == 0)
#endif

#define SNAPSHOT seen[0] = row[0]; seen[1] = row[1]

/* The code looks after it has changed rows. Here it looks as early as the lock allows, and what it
 * changes itself is added to that. */
#ifdef BUG_SNAPSHOT_BEFORE_LOCK
#define MAY_BEGIN true
inline begin(who) {
    begun[who] = true;
    SNAPSHOT;
    IS_FREE -> holder = who + 1;         /* if need be it waits here, and others go on */
    READ_CLOCK
}
#else
#define MAY_BEGIN IS_FREE
inline begin(who) {
    begun[who] = true;
    holder = who + 1;
    READ_CLOCK;
    SNAPSHOT
}
#endif

inline change(i, releases, is_late) {
    if
    :: releases && row[i] -> bury(i); seen[i] = false
    :: releases && !row[i]
#ifdef BUG_NO_NOT_AFTER
    :: !releases && row[i] -> refresh(i)
    :: !releases && !row[i] -> insert(i); seen[i] = true
#else
    :: !releases && is_late
    :: !releases && !is_late && row[i] -> refresh(i)
    :: !releases && !is_late && !row[i] -> insert(i); seen[i] = true
#endif
    fi
}

#ifdef BUG_NEVER_REAPED
#define is_stale(i) false
#else
#define is_stale(i) (age[i] >= STALE && judges)
#endif

inline reap(i) {
    if
    :: row[i] && is_stale(i) ->
        /* P3: a client that answers loses its row only when for as long as a lease lasts, less the
         * heartbeat in which it was renewed last, somebody could renew and its node could not. */
        assert(!connected[i] || session[i] != live || away[i] >= STALE - 1);
        bury(i);
        seen[i] = false
    :: else
    fi
}

/* The flag is decided by what was seen, with the lock or without. P1: it is what there is. */
inline commit(who) {
    reap(0);
    reap(1);
    flag = (seen[0] || seen[1]);
    assert(flag == (row[0] || row[1]));  /* P1 */
    seen[0] = false;
    seen[1] = false;
    judges = false;
    begun[who] = false;
    holder = 0
}

inline tick() {
    if
    :: since_tick > JUDGE -> amnesty = STALE
    :: else
    fi;
    since_tick = 0;
    ticked = true
}

/* The answer to the lane's call. */
inline hear(i) {
    if
    :: lane_releases[i] -> finish(i)
    :: !lane_releases[i] && session[i] == acquiring ->
        session[i] = live;
        maybe_done[i] = false;
        confirmed[i] = true;
        buried[i] = buried[i] || !row[i];
#ifndef BUG_FIRST_RENEWAL_LATE
        owes[i] = lane_old[i]    /* the heartbeat counts from the question, not from the answer */
#endif
    :: !lane_releases[i] && session[i] == abandoning -> maybe_done[i] = true
    fi;
    forget_call(i)
}

proctype transitions(byte i) {
    bool releases, judges, seen[2];
end:
    do
    :: atomic { lane[i] == asked && MAY_BEGIN -> begin(i) };
       d_step {
           change(i, lane_releases[i], false);
           commit(i);
           lane[i] = done;
           if
           :: able(i) -> hear(i)
           :: else               /* it waits in a socket */
           fi
       }
    :: atomic { stray[i] != nothing && MAY_BEGIN -> begin(i); releases = (stray[i] == release) };
       d_step {
           change(i, releases, stray_late[i]);
           commit(i);
           forget_stray(i);
           releases = false
       }
    od
}

proctype sweep() {
    bool judges, seen[2];
end:
    do
    :: atomic { !swept && (able(0) || able(1)) && MAY_BEGIN -> begin(2) };
       d_step { commit(2); swept = true }
    od
}

/* ---- A node --------------------------------------------------------------------------------- */

proctype client(byte i) {
end:
    do
    :: d_step { session[i] == none && node[i] == up -> session[i] = acquiring; connected[i] = true }
    :: d_step { connected[i] -> connected[i] = false }
#ifdef LIVENESS
    :: connected[i] -> skip      /* fairness alone makes nobody leave */
#endif
    od
}

proctype session_of(byte i) {
end:
    do
    /* The client has gone. */
    :: d_step {
           node[i] == up && !connected[i] && (session[i] == acquiring || session[i] == live) ->
           if
           :: session[i] == live -> session[i] = releasing; owes[i] = false
           :: session[i] == acquiring && lane[i] == idle && !maybe_done[i] -> finish(i)
           :: else -> session[i] = abandoning
           fi
       }
    /* A new session with the database ends the old one's backend, or waits until it is late. */
    :: d_step { able(i) && stray[i] != nothing && lane[i] == idle && !begun[i] -> forget_stray(i) }
    :: d_step {
           able(i) && lane[i] == idle && has_work(i) && is_fenced(i) ->
           if
           :: session[i] == abandoning -> session[i] = releasing; maybe_done[i] = false
           :: else
           fi;
           lane[i] = asked;
           lane_releases[i] = (session[i] == releasing)
       }
    :: d_step { able(i) && lane[i] == done -> hear(i) }
    /* The connection breaks. What was sent has run, or will run, or never will: nobody knows. */
    :: atomic {
           node[i] != dead && !linked[i] && lane[i] != idle && !begun[i] ->
           if
           :: lane[i] == asked -> stray[i] = (lane_releases[i] -> release : acquire);
                                  stray_late[i] = false
           :: true
           fi;
           maybe_done[i] = !lane_releases[i];
#ifdef BUG_RELEASE_DROPPED
           if
           :: lane_releases[i] -> finish(i)
           :: else
           fi;
#endif
           forget_call(i)
       }
    od
}

/* A renewal with its tick and its answer is one step; what a break makes of it is a stray. */
proctype renewals(byte i) {
end:
    do
    :: d_step {
           able(i) && (!renewed[i] || owes[i]) ->
           if
           :: session[i] == live && row[i] -> refresh(i)
#ifdef BUG_RENEWAL_INSERTS
           :: session[i] == live && !row[i] -> insert(i)
#else
           :: session[i] == live && !row[i] ->            /* lease_lost, reconnect (P5) */
#ifndef BUG_NEVER_TOLD
               finish(i)
#endif
#endif
           :: else
           fi;
           owes[i] = false;
           renewed[i] = true;
           tick()
       }
    :: d_step {
           stray_renewal[i] ->
           if
           :: row[i] -> refresh(i)
#ifdef BUG_RENEWAL_INSERTS
           :: else -> insert(i)
#else
           :: else
#endif
           fi;
           tick();
           stray_renewal[i] = false
       }
    :: d_step { stray_renewal[i] -> stray_renewal[i] = false }
    od
}

/* ---- What goes wrong, and gets well again ---------------------------------------------------- */

#define FAULT(guard) faults < FAULTS && (guard) -> faults++

inline lose(i) {                         /* from here on it is not able */
    fresh[i] = false;
    if
    :: session[i] == live -> stray_renewal[i] = true      /* one was on its way */
    :: true
    fi
}

/* The database crashes. With it may go a renewal that it had acknowledged and not yet written to
 * disk (synchronous_commit = off), and the tick in it: the node believes in both until it has a
 * connection again, and then renews at once. All in one step, for any synchronous commit between
 * the answer and the crash would have written the renewal, too. */
inline crash(i) {
    if
    :: able(i) ->
        if
        :: session[i] == live && row[i] ->
            renewed[i] = true;
#ifdef BUG_LOST_RENEWAL_STANDS
            owes[i] = false
#else
            owes[i] = true
#endif
        :: true
        fi;
        linked[i] = false;
        lose(i)
    :: else
    fi
}

inline kill(i) {
    node[i] = dead;
    if
    :: lane[i] == asked -> stray[i] = (lane_releases[i] -> release : acquire);
                           stray_late[i] = false
    :: else
    fi;
    forget_call(i);
    renewed[i] = false;
    linked[i] = true;
    finish(i)
}

proctype trouble() {
end:
    do
    :: atomic { FAULT(able(0)); linked[0] = false; lose(0) }
    :: atomic { FAULT(able(0)); node[0] = frozen; lose(0) }
    :: atomic { FAULT(node[0] != dead && !begun[0]); lose(0); kill(0) }
    :: atomic { FAULT(able(0) || able(1)); crash(0); crash(1) }
    :: atomic { FAULT(able(1)); linked[1] = false; lose(1) }
    :: atomic { FAULT(able(1)); node[1] = frozen; lose(1) }
    :: d_step { FAULT(row[0] && is_quiet); bury(0) }      /* by hand: the flag is not touched */
    od
}

proctype repair(byte i) {
end:
    do
    :: d_step { !linked[i] -> linked[i] = true; fresh[i] = true }
    :: d_step { node[i] == frozen -> node[i] = up; fresh[i] = true }
    od
}

/* ---- Time -------------------------------------------------------------------------------------- */

/* An able node hears what was answered, and renews what is overdue, at once; for the rest of its
 * work it needs a heartbeat in which it was able throughout. A call that is under way ends, one way
 * or the other, in much less than a heartbeat. */
#define has_left(i) (!connected[i] && (session[i] == acquiring || session[i] == live))
#define in_time(i)  (lane[i] != asked && \
    (!able(i) || (lane[i] == idle && !owes[i] && \
        (fresh[i] || (renewed[i] && !has_left(i) && (!has_work(i) || is_stuck(i)))))))

inline pass(i) {
    if
    :: !was_able(i) && row[i] && away[i] < STALE && ticked -> away[i]++
    :: else
    fi;
    if
    :: is_deaf(i) && was_able(i) -> deaf[i]++
    :: else -> deaf[i] = 0
    fi;
    /* P3: a node that renews leaves out none of its sessions. */
    assert(!(able(i) && renewed[i] && session[i] == live && row[i] && age[i] > 0));
    assert(deaf[i] <= 1);        /* P5: told within a heartbeat and a little */
    /* P2: nothing is left of a session that has ended, once its node could see to it. */
    assert(!(session[i] == over && row[i] && was_able(i)));
    lane_old[i] = (lane[i] == done && !lane_releases[i]);
    stray_late[i] = (stray[i] != nothing);
    renewed[i] = false;
    fresh[i] = false
}

inline grow_older() {
    age[0] = (row[0] && age[0] < STALE -> age[0] + 1 : age[0]);
    age[1] = (row[1] && age[1] < STALE -> age[1] + 1 : age[1]);
    amnesty = (amnesty > 0 -> amnesty - 1 : 0)
}

proctype clock() {
end:
    do
    :: d_step {
           is_quiet && in_time(0) && in_time(1) && (swept || !(was_able(0) || was_able(1))) ->
           pass(0);
           pass(1);
           ticked = false;
           swept = false;
#ifdef BUG_WALL_CLOCK
           grow_older();
#else
           if
           :: since_tick < JUDGE -> grow_older()
           :: else                       /* lease time stands still */
           fi;
#endif
           since_tick = (since_tick > JUDGE -> since_tick : since_tick + 1)
       }
    od
}

init {
    atomic {
        byte i;
        for (i : 0 .. 1) {
            if
            :: i < SESSIONS -> run client(i); run session_of(i); run transitions(i)
            :: else
            fi;
            run renewals(i);
            run repair(i)
        }
        run sweep();
        run trouble();
        run clock()
    }
}

/* With fairness between processes; script/model counts no assertion here. */
#ifdef LIVENESS
#define is_empty (!connected[0] && !connected[1])
ltl told     { [] (is_deaf(0) -> <> !is_deaf(0)) }
ltl flag_off { [] ((is_empty && able(1)) -> <> (!flag || !is_empty || !able(1))) }
#endif
