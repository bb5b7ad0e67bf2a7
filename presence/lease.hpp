// One subscription's lease on its agent, from subscribe to release: events go in, actions come out.
//
//     acquiring --acquired--> live --close/unsubscribe--> releasing --released--> ended
//         |                    |
//         |                    +--missing--> lost          (its row is gone: never taken back, P4)
//         +--refused--> ended
//         +--close while pending--> abandoning --acquired--> releasing
//                                       +--abandoned/refused--> ended
//
// Pure: no I/O, no clock. Not thread-safe: one owner, its shard's thread.
#pragma once

#include "presence/types.hpp"

namespace presenced::presence {

enum class lease_state : std::uint8_t { acquiring, abandoning, live, releasing, lost, ended };

// What the owner has to do next; at most one thing an event.
enum class action : std::uint8_t {
    none,
    abandon, // take the acquire back: it may be unsent, in flight, or done
    renew,   // send a renewal
    release, // send a release with release_cause()
    confirm, // tell the client: the row is committed
    reject,  // tell the client: not its agent, or no such agent
    tell,    // tell the client that its lease is lost, and end the connection
};

class lease {
public:
    // A lease that is about to be acquired; the caller sends the acquire.
    lease(lease_token token, time_point asked_at)
        : token_{token}
        , renewed_at_{asked_at} {}

    lease_token const& token() const { return token_; }
    lease_state state() const { return state_; }
    // Of a lease that is acquiring: since when.
    time_point asked_at() const { return renewed_at_; }
    // Only for releasing leases and those whose release is due.
    release_reason release_cause() const { return cause_; }

    // The acquire committed. Returns confirm, or release when nobody wants it any more. The first
    // renewal is due a heartbeat after the acquire was asked for: the answer may have waited long,
    // on a node that was frozen, and the row is as old as the question.
    action on_acquired(duration heartbeat);
    // No such agent, or not its owner's. Returns reject, or none when nobody waits for it.
    action on_refused();
    // The database holds no trace of an abandoned acquire.
    action on_abandoned();

    // When the next renewal is due; time_point::max() unless live, and while one is under way.
    time_point renewal_due() const {
        return state_ == lease_state::live && !renewing_ ? due_ : time_point::max();
    }
    // To be called when a renewal is due, and on evidence while one is overdue. `evidence` is the
    // time of the client's latest sign of life. Returns renew, or none when there was no evidence
    // since the last renewal (it stays due) or one is still under way.
    action on_due(time_point now, time_point evidence, duration heartbeat);
    // The renewal under way reached the row.
    void on_renewed();
    // The renewal found no row. Returns tell when the lease was still held.
    action on_missing();
    // Asynchronous commits may have been lost with the server: due at `by` at the latest, if there
    // is evidence then. Never later than before, however often the database comes back.
    void on_database_back(time_point by);

    // The client unsubscribed or its connection ended. Returns release, abandon, or none.
    action on_close(release_reason why);
    // The release committed, or found nothing to remove.
    void on_released();

    bool is_live() const { return state_ == lease_state::live; }
    bool is_over() const { return state_ == lease_state::lost || state_ == lease_state::ended; }
    bool is_renewing() const { return renewing_; }

private:
    lease_token token_;
    lease_state state_ = lease_state::acquiring;
    release_reason cause_ = release_reason::disconnected;
    bool renewing_ = false;
    time_point due_{};
    time_point
        renewed_at_; // when the acquire or the last renewal was sent: evidence must be younger
};

} // namespace presenced::presence
