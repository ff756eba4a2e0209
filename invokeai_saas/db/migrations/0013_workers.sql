-- Workers on many machines: who they are, which of them may take an item, and what becomes of an item whose worker is gone.

-- One row per device of a worker, kept by the worker itself; its word counts until `alive_until`. S3-025 is the ancestor (X-10). A name stays
-- over restarts, an incarnation is one life; the devices of one process may share it.
CREATE TABLE gpu_instances (
    name text NOT NULL CONSTRAINT gpu_instances_pkey PRIMARY KEY,
    incarnation uuid NOT NULL,
    worker_id text NOT NULL,
    tiers text[] NOT NULL CONSTRAINT gpu_instances_tiers_are_known
        CHECK (cardinality(tiers) > 0 AND tiers <@ ARRAY['basic', 'high_performance', 'dedicated']),
    device text NOT NULL,
    gpu_name text,
    memory_mb integer,
    used_memory_mb integer,
    utilization double precision,
    status text NOT NULL CONSTRAINT gpu_instances_status_is_known
        CHECK (status IN ('starting', 'available', 'busy', 'draining', 'quarantined', 'terminated')),
    -- What an admin asked for and the worker has not heard yet.
    wanted text CONSTRAINT gpu_instances_wanted_is_known CHECK (wanted IN ('drain', 'resume')),
    current_item_id bigint,
    current_user_id text,
    -- NULL: it has, or can fetch, every model.
    model_keys text[],
    failures_in_a_row integer NOT NULL DEFAULT 0,
    reason text,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_heartbeat timestamptz NOT NULL DEFAULT clock_timestamp(),
    alive_until timestamptz NOT NULL
-- It is updated and hardly anything else: pages have room for the next version of a row.
) WITH (fillfactor = 50);
CREATE INDEX gpu_instances_incarnation ON gpu_instances (incarnation);

-- What a base needs: the least tier of GPU, and the memory that a card of the smallest fitting class reports (S0-27..31). A base that is not
-- here needs high_performance and no stated memory (decision 18).
CREATE TABLE model_needs (
    base text NOT NULL CONSTRAINT model_needs_pkey PRIMARY KEY,
    tier text NOT NULL CONSTRAINT model_needs_tier_is_known CHECK (tier IN ('basic', 'high_performance', 'dedicated')),
    memory_mb integer CONSTRAINT model_needs_memory_is_positive CHECK (memory_mb > 0)
);
INSERT INTO model_needs (base, tier, memory_mb) VALUES
    ('any', 'basic', NULL), ('external', 'basic', NULL), ('sd-1', 'basic', NULL), ('sd-2', 'basic', NULL), ('sdxl', 'basic', NULL),
    ('sdxl-refiner', 'basic', NULL), ('sd-3', 'basic', NULL), ('z-image', 'basic', NULL), ('flux', 'high_performance', NULL),
    ('flux2', 'high_performance', NULL), ('cogview4', 'high_performance', NULL), ('animatediff', 'basic', 7500),
    ('svd', 'high_performance', 11500), ('z-image-video', 'high_performance', 15000), ('wan', 'high_performance', NULL),
    ('hunyuan-video', 'dedicated', 22500);

-- The items of a user that the same workers may take, as a number: the claim looks at the first of each and passes over the rest.
CREATE FUNCTION queue_route(tiers text[], memory_mb integer, models text[], pin uuid) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN tiers IS NULL AND memory_mb IS NULL AND models IS NULL AND pin IS NULL THEN 0 ELSE hashtextextended(
    COALESCE(array_to_string(tiers, ','), '*') || ';' || COALESCE(memory_mb::text, '*') || ';' || COALESCE(array_to_string(models, ','), '*')
        || ';' || COALESCE(pin::text, '*'), 0) END;

ALTER TABLE session_queue
    -- Of these one; NULL is any, none at all is: only a worker of every tier (jobs/routing.py).
    ADD COLUMN tiers text[],
    ADD COLUMN needs_memory_mb integer,
    ADD COLUMN needs_models text[],
    -- Whose tensors it goes on with: no other life of a worker may take it.
    ADD COLUMN pinned_to uuid,
    -- A lost item waits before it is tried again.
    ADD COLUMN not_before timestamptz,
    -- Changed by somebody who could not tell its owner's sockets; the next reaper does.
    ADD COLUMN untold boolean NOT NULL DEFAULT false,
    ADD COLUMN route bigint NOT NULL GENERATED ALWAYS AS (queue_route(tiers, needs_memory_mb, needs_models, pinned_to)) STORED;
CREATE INDEX session_queue_claimable_by_route ON session_queue (route, user_id, priority DESC, item_id) WHERE status = 'pending';
DROP INDEX session_queue_claimable_by_user;
CREATE INDEX session_queue_pinned ON session_queue (pinned_to) WHERE status = 'pending' AND pinned_to IS NOT NULL;
CREATE INDEX session_queue_untold ON session_queue (item_id) WHERE untold;
-- The called workflows of a root: what is lost with it.
CREATE INDEX session_queue_of_root ON session_queue (root_item_id) WHERE root_item_id IS NOT NULL;

-- A session as it was enqueued: nothing of it has run. One that is no graph stays as it is, and fails when it is read.
CREATE FUNCTION queue_fresh_session(session text) RETURNS text LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF session::json -> 'graph' IS NULL OR session::json ->> 'id' IS NULL THEN
        RETURN session;
    END IF;
    RETURN json_build_object('id', session::json -> 'id', 'graph', session::json -> 'graph')::text;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN session;
END $$;

-- A job that starts again owes nothing for what it did before: the operator's side lost that (decision 14).
CREATE FUNCTION credits_start_over(p_root bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE credit_holds SET provider_spent = 0, child_seconds = 0, child_started = false, child_outputs = false, child_lost = false
    WHERE state = 'held' AND item_id = p_root
        AND user_id = (SELECT item.user_id FROM session_queue AS item WHERE item.item_id = p_root AND item.root_item_id IS NULL);
END $$;
REVOKE EXECUTE ON FUNCTION credits_start_over(bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION credits_start_over(bigint) TO invokeai_system;
ALTER FUNCTION credits_start_over(bigint) OWNER TO invokeai_books;

-- gpu_instances: what an operator's machines are called and who runs what on them. System work only: no grant and no policy for tenants.
ALTER TABLE gpu_instances ENABLE ROW LEVEL SECURITY;
ALTER TABLE gpu_instances FORCE ROW LEVEL SECURITY;
CREATE POLICY gpu_instances_system ON gpu_instances TO invokeai_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON gpu_instances TO invokeai_system;

-- model_needs: the same for all; read by all, changed by system work.
ALTER TABLE model_needs ENABLE ROW LEVEL SECURITY;
ALTER TABLE model_needs FORCE ROW LEVEL SECURITY;
CREATE POLICY model_needs_system ON model_needs TO invokeai_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON model_needs TO invokeai_system;
GRANT SELECT ON model_needs TO invokeai_app;
CREATE POLICY model_needs_read ON model_needs FOR SELECT TO invokeai_app
    USING (true);
