-- Billing: who is whom at Stripe, what Stripe told us, what was paid, and who had a trial. Credits and subscriptions are other tables;
-- here is what makes their changes happen exactly once, in whatever order Stripe's events arrive.
-- Everything is written by system work. Tenants read their own payments.

-- A user's Stripe customers: one that counts, and those that were deleted at Stripe, whose refunds may still come.
CREATE TABLE billing_customers (
    stripe_customer_id text NOT NULL CONSTRAINT billing_customers_pkey PRIMARY KEY,
    user_id text NOT NULL CONSTRAINT billing_customers_user_id_fkey REFERENCES users (user_id),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    retired_at timestamptz
);
CREATE UNIQUE INDEX billing_customers_one_counts ON billing_customers (user_id) WHERE retired_at IS NULL;
CREATE INDEX billing_customers_user_id ON billing_customers (user_id);

-- The inbox. The event's id is the key: the insert decides who was first. What the event says of its object is not kept: it is old the
-- moment it arrives and holds addresses; the object is asked for again when the event is processed.
CREATE TABLE stripe_events (
    event_id text NOT NULL CONSTRAINT stripe_events_pkey PRIMARY KEY,
    type text NOT NULL,
    -- NULL where the event does not say: disputes. Looked up before anything else is done.
    customer text,
    object_kind text NOT NULL CONSTRAINT stripe_events_kind_is_known
        CHECK (object_kind IN ('checkout_session', 'subscription', 'invoice', 'payment_intent')),
    object_id text NOT NULL,
    happened_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    state text NOT NULL DEFAULT 'waiting' CONSTRAINT stripe_events_state_is_known CHECK (state IN ('waiting', 'done', 'ignored', 'failed')),
    attempts integer NOT NULL DEFAULT 0,
    not_before timestamptz NOT NULL DEFAULT clock_timestamp(),
    processed_at timestamptz,
    error text,
    CONSTRAINT stripe_events_failed_with_error CHECK (state <> 'failed' OR error IS NOT NULL),
    CONSTRAINT stripe_events_processed_when CHECK ((state IN ('done', 'ignored')) = (processed_at IS NOT NULL))
);
CREATE INDEX stripe_events_waiting ON stripe_events (not_before) WHERE state = 'waiting';
CREATE INDEX stripe_events_of_customer ON stripe_events (customer) WHERE state = 'waiting';
CREATE INDEX stripe_events_failed ON stripe_events (received_at) WHERE state = 'failed';
CREATE INDEX stripe_events_processed_at ON stripe_events (processed_at) WHERE processed_at IS NOT NULL;

-- One process at a time looks after a customer. Whoever took the lease over raised the fence: what an older fence brings is discarded.
CREATE TABLE customer_leases (
    customer text NOT NULL CONSTRAINT customer_leases_pkey PRIMARY KEY,
    fence bigint NOT NULL,
    leased_until timestamptz NOT NULL
);

-- S3-021. One per paid (or failed) invoice or pack; `credits` is what it granted, for good, whatever becomes of the plan.
CREATE TABLE payments (
    id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT payments_pkey PRIMARY KEY,
    user_id text NOT NULL,
    kind text NOT NULL CONSTRAINT payments_kind_is_known CHECK (kind IN ('subscription', 'pack')),
    stripe_payment_intent_id text CONSTRAINT payments_stripe_payment_intent_id_key UNIQUE,
    stripe_invoice_id text CONSTRAINT payments_stripe_invoice_id_key UNIQUE,
    amount numeric(10, 2) NOT NULL,
    amount_refunded numeric(10, 2) NOT NULL DEFAULT 0,
    currency char(3) NOT NULL DEFAULT 'usd' CONSTRAINT payments_currency_is_lower_case CHECK (currency ~ '^[a-z]{3}$'),
    status text NOT NULL CONSTRAINT payments_status_is_known CHECK (status IN ('succeeded', 'pending', 'failed', 'refunded')),
    disputed boolean NOT NULL DEFAULT false,
    credits integer NOT NULL DEFAULT 0 CONSTRAINT payments_credits_not_negative CHECK (credits >= 0),
    plan_slug text,
    description text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT payments_refunded_within_amount CHECK (amount_refunded BETWEEN 0 AND amount),
    CONSTRAINT payments_of_something CHECK (CASE kind WHEN 'pack' THEN stripe_payment_intent_id IS NOT NULL AND stripe_invoice_id IS NULL
        ELSE stripe_invoice_id IS NOT NULL END),
    CONSTRAINT payments_grant_when_paid CHECK (credits = 0 OR status IN ('succeeded', 'refunded'))
);
CREATE INDEX payments_user_id ON payments (user_id, created_at);
CREATE INDEX payments_created_at ON payments (created_at);

-- Who had a trial: a keyed hash of the address, which outlives the account, so that nobody has two (decision 17).
CREATE TABLE trials (
    mark text NOT NULL CONSTRAINT trials_pkey PRIMARY KEY CONSTRAINT trials_mark_is_sha256 CHECK (mark ~ '^[0-9a-f]{64}$'),
    begun_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- When something was last done for everybody: from where a reconciliation goes on.
CREATE TABLE billing_marks (
    name text NOT NULL CONSTRAINT billing_marks_pkey PRIMARY KEY,
    reached timestamptz NOT NULL
);

-- A reminder of what was already said, so that a letter is not written twice: the end of a trial, a suspension.
ALTER TABLE user_subscriptions ADD COLUMN told_of text CONSTRAINT user_subscriptions_told_of_is_known CHECK (told_of IN ('suspended'));

DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['billing_customers', 'stripe_events', 'customer_leases', 'payments', 'trials', 'billing_marks'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format('CREATE POLICY %I ON %I TO invokeai_system USING (true) WITH CHECK (true)', table_name || '_system', table_name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO invokeai_system', table_name);
    END LOOP;
END $$;
-- Books stay.
REVOKE DELETE ON payments, trials FROM invokeai_system;

-- payments: one's own, to read. The rest is Stripe's ids, or nobody's.
GRANT SELECT ON payments TO invokeai_app;
CREATE POLICY payments_read ON payments FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()));
