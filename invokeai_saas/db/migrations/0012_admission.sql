-- What stands between a request and the queue: requests that were answered once, and how many jobs of a user run at once.

-- What the claim counts: nobody's queue is read for it.
CREATE INDEX session_queue_running_by_user ON session_queue (user_id) WHERE status = 'in_progress';

-- One row per key that a client chose. A request that only writes the database commits its row with its effect (state 'done' from the
-- start); one that talks to somebody else announces itself first ('running', until lease_until) and is done when the answer is known.
CREATE TABLE idempotency_keys (
    user_id text NOT NULL CONSTRAINT idempotency_keys_user_id_fkey REFERENCES users (user_id) ON DELETE CASCADE,
    route text NOT NULL,
    key text NOT NULL CONSTRAINT idempotency_keys_key_has_1_to_255_characters CHECK (length(key) BETWEEN 1 AND 255),
    body_hash text NOT NULL CONSTRAINT idempotency_keys_hash_is_sha256 CHECK (body_hash ~ '^[0-9a-f]{64}$'),
    -- Goes to others as their idempotency key, so that a second try after a crash is still the first one there.
    step_key uuid NOT NULL DEFAULT gen_random_uuid(),
    state text NOT NULL CONSTRAINT idempotency_keys_state_is_known CHECK (state IN ('running', 'done')),
    lease_until timestamptz,
    status integer,
    -- JSON, as it was sent: it comes back letter by letter.
    answer text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (user_id, route, key),
    CONSTRAINT idempotency_keys_running_with_lease CHECK ((state = 'running') = (lease_until IS NOT NULL)),
    CONSTRAINT idempotency_keys_done_with_status CHECK ((state = 'done') = (status IS NOT NULL))
);
CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at);

-- One's own: the row is written in the transaction of the effect, which is the tenant's.
ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY idempotency_keys_system ON idempotency_keys TO invokeai_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_keys TO invokeai_system;
GRANT SELECT, INSERT, DELETE ON idempotency_keys TO invokeai_app;
GRANT UPDATE (state, lease_until, status, answer) ON idempotency_keys TO invokeai_app;
CREATE POLICY idempotency_keys_read ON idempotency_keys FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()));
CREATE POLICY idempotency_keys_insert ON idempotency_keys FOR INSERT TO invokeai_app
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY idempotency_keys_update ON idempotency_keys FOR UPDATE TO invokeai_app
    USING (user_id = (SELECT app_user_id()))
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY idempotency_keys_delete ON idempotency_keys FOR DELETE TO invokeai_app
    USING (user_id = (SELECT app_user_id()));

-- Who was told that their credits run low, until they have enough again. System work only: no grant and no policy for tenants.
CREATE TABLE low_balance_letters (
    user_id text NOT NULL CONSTRAINT low_balance_letters_pkey PRIMARY KEY
        CONSTRAINT low_balance_letters_user_id_fkey REFERENCES users (user_id) ON DELETE CASCADE,
    told_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE low_balance_letters ENABLE ROW LEVEL SECURITY;
ALTER TABLE low_balance_letters FORCE ROW LEVEL SECURITY;
CREATE POLICY low_balance_letters_system ON low_balance_letters TO invokeai_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, DELETE ON low_balance_letters TO invokeai_system;
