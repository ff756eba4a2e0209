-- Plans as data: what may be bought, which models each may use, who is on which plan, and which plan counts now.
-- NULL in a limit means unlimited, in a price or a credit count agreed by contract (decision 17); never 0 for either.

CREATE TABLE subscription_plans (
    plan_id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT subscription_plans_pkey PRIMARY KEY,
    -- Other rows and Stripe's products name a plan by it, so it is never changed: by a trigger, below.
    slug text NOT NULL CONSTRAINT subscription_plans_slug_key UNIQUE
        CONSTRAINT subscription_plans_slug_is_plain CHECK (slug ~ '^[a-z0-9][a-z0-9_-]{0,49}$'),
    name text NOT NULL CONSTRAINT subscription_plans_name_has_1_to_50_characters CHECK (length(name) BETWEEN 1 AND 50),
    plan_type text NOT NULL CONSTRAINT subscription_plans_type_is_known CHECK (plan_type IN ('paid', 'internal', 'trial')),
    monthly_price numeric(10, 2),
    annual_price numeric(10, 2),
    currency char(3) NOT NULL DEFAULT 'usd' CONSTRAINT subscription_plans_currency_is_lower_case CHECK (currency ~ '^[a-z]{3}$'),
    monthly_credits integer,
    -- How long a period's credits count, and how long the trial lasts.
    validity_days integer NOT NULL DEFAULT 30 CONSTRAINT subscription_plans_validity_is_1_to_366_days CHECK (validity_days BETWEEN 1 AND 366),
    gpu_tier text NOT NULL CONSTRAINT subscription_plans_tier_is_known CHECK (gpu_tier IN ('basic', 'high_performance', 'dedicated')),
    price_per_gpu_second numeric(10, 6) NOT NULL,
    cost_per_gpu_second numeric(10, 6) NOT NULL,
    -- Parallel jobs; images and videos share them (decision 18).
    max_queues integer,
    max_storage_gb integer,
    plan_priority integer NOT NULL DEFAULT 0 CONSTRAINT subscription_plans_priority_is_0_to_1000 CHECK (plan_priority BETWEEN 0 AND 1000),
    model_access text NOT NULL CONSTRAINT subscription_plans_access_is_known CHECK (model_access IN ('sd_only', 'flux_included', 'full')),
    third_party_api_access boolean NOT NULL DEFAULT false,
    lora_training boolean NOT NULL DEFAULT false,
    collaboration boolean NOT NULL DEFAULT false,
    node_editor_access boolean NOT NULL DEFAULT false,
    api_access boolean NOT NULL DEFAULT false,
    -- Sides are compared long to long and short to short; video_bases NULL means every family.
    can_generate_video boolean NOT NULL DEFAULT false,
    max_video_frames integer,
    max_video_long_side integer,
    max_video_short_side integer,
    video_bases text[],
    max_image_long_side integer,
    max_image_short_side integer,
    max_steps integer,
    -- Graphs run by one enqueue, and how often one of them repeats a node: their product.
    max_repeats integer,
    stripe_product text CONSTRAINT subscription_plans_stripe_product_key UNIQUE,
    stripe_price_monthly text CONSTRAINT subscription_plans_stripe_price_monthly_key UNIQUE,
    stripe_price_annual text CONSTRAINT subscription_plans_stripe_price_annual_key UNIQUE,
    features jsonb NOT NULL DEFAULT '{}' CONSTRAINT subscription_plans_features_are_an_object CHECK (jsonb_typeof(features) = 'object'),
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT subscription_plans_prices_not_negative CHECK (COALESCE(least(monthly_price, annual_price, 0), 0) = 0),
    CONSTRAINT subscription_plans_credits_not_negative CHECK (monthly_credits >= 0),
    -- A tier is never sold below what it costs (decision 20).
    CONSTRAINT subscription_plans_not_below_cost CHECK (cost_per_gpu_second >= 0 AND price_per_gpu_second >= cost_per_gpu_second),
    CONSTRAINT subscription_plans_limits_are_positive CHECK (
        COALESCE(least(max_queues, max_storage_gb, max_image_long_side, max_image_short_side, max_steps, max_repeats, 1), 1) = 1),
    CONSTRAINT subscription_plans_image_sides_in_order CHECK (max_image_short_side <= max_image_long_side),
    CONSTRAINT subscription_plans_video_limits_only_with_video CHECK (CASE WHEN can_generate_video
        THEN COALESCE(least(max_video_frames, max_video_long_side, max_video_short_side, 1), 1) = 1
            AND COALESCE(max_video_short_side <= max_video_long_side, true) AND COALESCE(cardinality(video_bases) > 0, true)
        ELSE (max_video_frames, max_video_long_side, max_video_short_side, cardinality(video_bases)) IS NOT DISTINCT FROM (0, 0, 0, 0) END)
);

CREATE FUNCTION tg_plan_keeps_its_slug() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'the slug of a plan is never changed: % stays', OLD.slug
        USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'subscription_plans_slug_stays';
END $$;
CREATE TRIGGER tg_plan_keeps_its_slug BEFORE UPDATE OF slug ON subscription_plans
    FOR EACH ROW WHEN (OLD.slug <> NEW.slug) EXECUTE FUNCTION tg_plan_keeps_its_slug();

-- The rows of S3-028..033, S0-41 and C-18; storage of a trial and NULLs as decision 17 says. Basic and high performance cost what the
-- margins of S3-034 were reckoned with; dedicated costs an A100's second (C-40) and keeps the same margin of 72 %.
-- Video: 512 means up to 512x512, "720p" 1280x720, "1080p" 1920x1088 (decision 18).
INSERT INTO subscription_plans (slug, name, plan_type, monthly_price, monthly_credits, validity_days, gpu_tier, price_per_gpu_second,
    cost_per_gpu_second, max_queues, max_storage_gb, plan_priority, model_access, third_party_api_access, lora_training, collaboration,
    node_editor_access, api_access, can_generate_video, max_video_frames, max_video_long_side, max_video_short_side, video_bases,
    max_image_long_side, max_image_short_side, max_steps, max_repeats) VALUES
('trial', 'Trial', 'trial', 0, 500, 7, 'basic', 0.005, 0.0014, 1, 5, 0, 'sd_only', false, false, false, true, false,
    false, 0, 0, 0, '{}', 2048, 2048, 100, 50),
('starter', 'Starter', 'paid', 25, 5000, 30, 'basic', 0.005, 0.0014, 1, 20, 0, 'sd_only', false, false, false, true, false,
    true, 16, 512, 512, '{animatediff}', 2048, 2048, 100, 50),
('pro', 'Pro', 'paid', 75, 15000, 30, 'high_performance', 0.005, 0.0014, 1, 100, 0, 'flux_included', true, false, false, true, true,
    true, 48, 1280, 720, '{animatediff,svd,z-image-video}', 4096, 4096, 150, 250),
('studio', 'Studio', 'paid', 150, 30000, 30, 'high_performance', 0.005, 0.0014, 3, 200, 10, 'flux_included', true, false, false, true, true,
    true, 48, 1280, 720, '{animatediff,svd,z-image-video}', 4096, 4096, 150, 500),
('enterprise', 'Enterprise', 'paid', NULL, NULL, 30, 'dedicated', 0.032511, 0.009103, NULL, NULL, 20, 'full', true, true, true, true, true,
    true, 128, 1920, 1088, NULL, 8192, 8192, 500, 1000),
('tester', 'Tester', 'internal', 0, 50000, 30, 'basic', 0.005, 0.0014, 1, 20, 0, 'flux_included', true, false, false, true, true,
    true, 48, 1280, 720, '{animatediff,svd,z-image-video}', 2048, 2048, 100, 50);

-- Which level of model_access a base asks for; a base that is not here asks for `full` (decision 18, X-51).
CREATE TABLE model_access_levels (
    base text NOT NULL CONSTRAINT model_access_levels_pkey PRIMARY KEY,
    access text NOT NULL CONSTRAINT model_access_levels_access_is_known CHECK (access IN ('sd_only', 'flux_included', 'full'))
);
INSERT INTO model_access_levels (base, access) VALUES
    ('sd-1', 'sd_only'), ('sd-2', 'sd_only'), ('sdxl', 'sd_only'), ('sdxl-refiner', 'sd_only'),
    ('sd-3', 'flux_included'), ('flux', 'flux_included'), ('flux2', 'flux_included'), ('cogview4', 'flux_included'),
    ('z-image', 'flux_included');

CREATE TABLE user_subscriptions (
    subscription_id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT user_subscriptions_pkey PRIMARY KEY,
    user_id text NOT NULL CONSTRAINT user_subscriptions_user_id_fkey REFERENCES users (user_id),
    plan_id uuid NOT NULL CONSTRAINT user_subscriptions_plan_id_fkey REFERENCES subscription_plans (plan_id),
    stripe_subscription_id text CONSTRAINT user_subscriptions_stripe_subscription_id_key UNIQUE,
    stripe_customer_id text,
    status text NOT NULL CONSTRAINT user_subscriptions_status_is_known
        CHECK (status IN ('trialing', 'active', 'past_due', 'canceled', 'expired')),
    current_period_start timestamptz NOT NULL,
    current_period_end timestamptz NOT NULL,
    trial_end timestamptz,
    cancel_at_period_end boolean NOT NULL DEFAULT false,
    past_due_since timestamptz,
    grace_until timestamptz,
    -- A downgrade waits for the end of the period.
    next_plan_id uuid CONSTRAINT user_subscriptions_next_plan_id_fkey REFERENCES subscription_plans (plan_id),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT user_subscriptions_period_in_order CHECK (current_period_start < current_period_end),
    CONSTRAINT user_subscriptions_trial_has_an_end CHECK (status <> 'trialing' OR trial_end IS NOT NULL),
    CONSTRAINT user_subscriptions_past_due_since_when CHECK (status <> 'past_due' OR (past_due_since IS NOT NULL AND grace_until IS NOT NULL))
);
-- Two processes that subscribe one user at the same moment: one of them waits, and then fails.
CREATE UNIQUE INDEX user_subscriptions_one_running ON user_subscriptions (user_id) WHERE status IN ('trialing', 'active', 'past_due');
CREATE INDEX user_subscriptions_user_id ON user_subscriptions (user_id, created_at);

-- A window in which a user is on the plan `tester`, given by an admin (S3-022). The paid subscription, if any, is not touched by it.
CREATE TABLE tester_plan_grants (
    grant_id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT tester_plan_grants_pkey PRIMARY KEY,
    user_id text NOT NULL CONSTRAINT tester_plan_grants_user_id_fkey REFERENCES users (user_id),
    admin_user_id text NOT NULL,
    credits_granted integer NOT NULL DEFAULT 50000 CONSTRAINT tester_plan_grants_credits_are_positive CHECK (credits_granted > 0),
    valid_from timestamptz NOT NULL DEFAULT clock_timestamp(),
    valid_until timestamptz NOT NULL,
    reason text NOT NULL CONSTRAINT tester_plan_grants_reason_has_10_characters CHECK (length(btrim(reason)) >= 10),
    revoked boolean NOT NULL GENERATED ALWAYS AS (revoked_at IS NOT NULL) STORED,
    revoked_at timestamptz,
    revoked_by text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT tester_plan_grants_window_in_order CHECK (valid_from < valid_until),
    CONSTRAINT tester_plan_grants_revoked_by_somebody CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);
CREATE INDEX tester_plan_grants_user_id ON tester_plan_grants (user_id, valid_until);

-- Which plan counts for a user now: always one row. A running subscription first, and the latest ended one to say why there is none;
-- a tester's window goes before nothing, a trial and what is suspended, never before a plan that is paid for.
-- The clock is asked too: what a late job or a lost webhook did not end yet, ends here.
CREATE FUNCTION plan_of(who text) RETURNS TABLE (plan_id uuid, status text, suspended boolean) LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH latest AS (
        SELECT held.plan_id, plans.plan_type, CASE
                WHEN held.status = 'trialing' AND held.trial_end <= now() THEN 'expired'
                WHEN held.status = 'active' AND held.current_period_end <= now() AND held.cancel_at_period_end THEN 'canceled'
                -- Nobody renews what has no subscription at Stripe, but whoever made it.
                WHEN held.status = 'active' AND held.current_period_end <= now() AND held.stripe_subscription_id IS NULL THEN 'expired'
                ELSE held.status END AS status,
            held.status = 'past_due' AND held.grace_until <= now() AS suspended
        FROM user_subscriptions AS held JOIN subscription_plans AS plans ON plans.plan_id = held.plan_id
        WHERE held.user_id = who
        ORDER BY held.status IN ('trialing', 'active', 'past_due') DESC, held.created_at DESC, held.subscription_id LIMIT 1
    ), subscription AS (
        SELECT CASE WHEN latest.status IN ('canceled', 'expired') THEN NULL ELSE latest.plan_id END AS plan_id,
            latest.status, latest.suspended OR latest.status IN ('canceled', 'expired') AS suspended,
            latest.plan_type = 'trial' OR latest.suspended OR latest.status IN ('canceled', 'expired') AS gives_way
        FROM latest
    ), testing AS (
        SELECT plans.plan_id FROM tester_plan_grants AS given JOIN subscription_plans AS plans ON plans.slug = 'tester'
        WHERE given.user_id = who AND given.revoked_at IS NULL AND given.valid_from <= now() AND given.valid_until > now() LIMIT 1
    )
    SELECT CASE WHEN testers THEN testing.plan_id ELSE subscription.plan_id END,
        CASE WHEN testers THEN 'active' ELSE COALESCE(subscription.status, 'none') END,
        NOT testers AND COALESCE(subscription.suspended, false)
    FROM (SELECT 1) AS always LEFT JOIN subscription ON true LEFT JOIN testing ON true
        CROSS JOIN LATERAL (SELECT testing.plan_id IS NOT NULL AND COALESCE(subscription.gives_way, true) AS testers) AS wins;
END;

-- How many jobs of a user may run at once; NULL is no limit.
ALTER TABLE queue_turns ADD COLUMN max_parallel integer CONSTRAINT queue_turns_max_parallel_is_positive CHECK (max_parallel > 0);

-- The queue's order follows the plan, from before the first job. As whoever writes the subscription, which is system work: a tenant writes
-- neither table.
CREATE FUNCTION plans_set_turn(who text) RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
    INSERT INTO queue_turns (user_id, plan_priority, max_parallel)
        SELECT who, COALESCE(plans.plan_priority, 0), plans.max_queues
        FROM plan_of(who) AS now_on LEFT JOIN subscription_plans AS plans ON plans.plan_id = now_on.plan_id
    ON CONFLICT (user_id) DO UPDATE SET plan_priority = EXCLUDED.plan_priority, max_parallel = EXCLUDED.max_parallel
        WHERE (queue_turns.plan_priority, queue_turns.max_parallel) IS DISTINCT FROM (EXCLUDED.plan_priority, EXCLUDED.max_parallel);
END;

CREATE FUNCTION tg_subscription_sets_turn() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM plans_set_turn(OLD.user_id);
    END IF;
    IF TG_OP = 'INSERT' OR (TG_OP = 'UPDATE' AND NEW.user_id <> OLD.user_id) THEN
        PERFORM plans_set_turn(NEW.user_id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tg_subscription_sets_turn AFTER INSERT OR UPDATE OR DELETE ON user_subscriptions
    FOR EACH ROW EXECUTE FUNCTION tg_subscription_sets_turn();
CREATE TRIGGER tg_tester_grant_sets_turn AFTER INSERT OR UPDATE OR DELETE ON tester_plan_grants
    FOR EACH ROW EXECUTE FUNCTION tg_subscription_sets_turn();

CREATE FUNCTION tg_plan_sets_turn() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM plans_set_turn(found.user_id) FROM (
        SELECT user_id FROM user_subscriptions WHERE plan_id = NEW.plan_id AND status IN ('trialing', 'active', 'past_due')
        UNION SELECT user_id FROM tester_plan_grants WHERE NEW.slug = 'tester' AND revoked_at IS NULL AND valid_until > now()
    ) AS found ORDER BY found.user_id;
    RETURN NULL;
END $$;
CREATE TRIGGER tg_plan_sets_turn AFTER UPDATE OF plan_priority, max_queues ON subscription_plans
    FOR EACH ROW WHEN ((OLD.plan_priority, OLD.max_queues) IS DISTINCT FROM (NEW.plan_priority, NEW.max_queues)) EXECUTE FUNCTION tg_plan_sets_turn();

DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['subscription_plans', 'model_access_levels', 'user_subscriptions', 'tester_plan_grants'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format('CREATE POLICY %I ON %I TO invokeai_system USING (true) WITH CHECK (true)', table_name || '_system', table_name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO invokeai_system', table_name);
    END LOOP;
END $$;

-- subscription_plans, model_access_levels: the same for all; read by all, changed by admins (system work).
GRANT SELECT ON subscription_plans, model_access_levels TO invokeai_app;
CREATE POLICY subscription_plans_read ON subscription_plans FOR SELECT TO invokeai_app
    USING (true);
CREATE POLICY model_access_levels_read ON model_access_levels FOR SELECT TO invokeai_app
    USING (true);

-- user_subscriptions, tester_plan_grants: one's own, to read; billing writes them: a tenant could put themself on another plan.
GRANT SELECT ON user_subscriptions, tester_plan_grants TO invokeai_app;
CREATE POLICY user_subscriptions_read ON user_subscriptions FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()));
CREATE POLICY tester_plan_grants_read ON tester_plan_grants FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()));
