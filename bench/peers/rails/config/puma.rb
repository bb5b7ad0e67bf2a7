environment "production"
# A storm of upgrades waits in the backlog instead of being refused.
bind "tcp://127.0.0.1:#{ENV.fetch("PORT")}?backlog=4096"
# It only takes the upgrades; the work is done by Action Cable's own threads. With several, the
# first clients of all start a timer for pings each, and everybody is pinged twice from then on.
threads 1, 1
workers Integer(ENV.fetch("WEB_CONCURRENCY", 2))
preload_app!
quiet
