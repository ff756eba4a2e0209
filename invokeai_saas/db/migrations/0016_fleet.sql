-- How many workers each tier should have: one row per tier, written by whichever process looks, so that cool-downs are everybody's and all
-- answer alike. System work only: no grant and no policy for tenants.
CREATE TABLE fleet_scaling (
    tier text NOT NULL CONSTRAINT fleet_scaling_pkey PRIMARY KEY,
    wanted integer NOT NULL CONSTRAINT fleet_scaling_wanted_not_negative CHECK (wanted >= 0),
    -- When more were wanted last, and since when hardly anything waits (or since the last step down).
    raised_at timestamptz,
    quiet_since timestamptz,
    -- What the last look saw and said.
    step integer NOT NULL,
    why text NOT NULL,
    pending integer NOT NULL,
    runnable integer NOT NULL,
    oldest_wait_seconds double precision NOT NULL,
    alive integer NOT NULL,
    idle integer NOT NULL,
    busy integer NOT NULL,
    looked_at timestamptz NOT NULL
);
ALTER TABLE fleet_scaling ENABLE ROW LEVEL SECURITY;
ALTER TABLE fleet_scaling FORCE ROW LEVEL SECURITY;
CREATE POLICY fleet_scaling_system ON fleet_scaling TO invokeai_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON fleet_scaling TO invokeai_system;
