require_relative "presence"
run Presence
