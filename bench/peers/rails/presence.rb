# Presence as a Rails application has it: an Action Cable channel over ActiveRecord models, on the
# tables that "presenced migrate" makes.
require "rails"
require "active_record/railtie"
require "action_controller/railtie"
require "action_cable/engine"

class Presence < Rails::Application
  config.load_defaults "#{Rails::VERSION::MAJOR}.#{Rails::VERSION::MINOR}"
  config.root = __dir__
  config.api_only = true
  config.eager_load = true
  config.cache_classes = true
  config.consider_all_requests_local = false
  config.logger = Logger.new(nil)
  config.log_level = :fatal
  config.secret_key_base = SecureRandom.hex(64)
  config.hosts.clear
  # Clients are no browsers: they send a token, not a cookie, so there is nothing to forge.
  config.action_cable.disable_request_forgery_protection = true
  config.action_cable.worker_pool_size = Integer(ENV.fetch("CABLE_WORKERS", 4))

  routes.append { get "/up", to: ->(_) { [200, { "Content-Type" => "text/plain" }, ["ok\n"]] } }

  initialize!
end

class ApplicationRecord < ActiveRecord::Base
  self.abstract_class = true
end

class AccessToken < ApplicationRecord
  scope :usable, -> { where(revoked_at: nil).where("expires_at IS NULL OR expires_at > now()") }

  def self.authenticate(secret)
    usable.find_by(token_sha256: Digest::SHA256.digest(secret))
  end
end

class Agent < ApplicationRecord
  has_many :subscriptions, class_name: "AgentSubscription"

  # The row lock makes rows and flag change together, whatever other processes do.
  def subscribe(session_id)
    with_lock do
      subscriptions.stale.delete_all
      subscription = subscriptions.create!(session_id: session_id)
      set_routing_active(true)
      subscription
    end
  end

  def unsubscribe(subscription)
    with_lock do
      subscription.destroy
      subscriptions.stale.delete_all
      set_routing_active(subscriptions.exists?)
    end
  end

  private

  def set_routing_active(active)
    update!(routing_active: active, routing_changed_at: Time.current) if routing_active != active
  end
end

class AgentSubscription < ApplicationRecord
  STALE_AFTER = 45.seconds

  self.primary_key = "token"
  has_secure_token :token
  belongs_to :agent
  scope :stale, -> { where("last_seen_at <= ?", STALE_AFTER.ago) }

  # One statement without a transaction round it; false when the row is gone. (ActiveRecord's own
  # touch is BEGIN, UPDATE, COMMIT.)
  def renew
    self.class.where(token: token).update_all(last_seen_at: Time.current) == 1
  end
end

module ApplicationCable
  class Connection < ActionCable::Connection::Base
    identified_by :owner_id

    def connect
      token = AccessToken.authenticate(request.params[:token].to_s)
      token ? self.owner_id = token.owner_id : reject_unauthorized_connection
    end
  end
end

class AgentChannel < ActionCable::Channel::Base
  periodically :touch, every: 15.seconds

  def subscribed
    agent = Agent.find_by(id: params[:agent_id], owner_id: owner_id)
    return reject unless agent

    stream_for agent
    @agent = agent
    @subscription = agent.subscribe(params[:session_id])
  end

  def unsubscribed
    @agent.unsubscribe(@subscription) if @subscription
  end

  private

  def touch
    connection.close(reason: "lease_lost") unless @subscription.renew
  end
end
