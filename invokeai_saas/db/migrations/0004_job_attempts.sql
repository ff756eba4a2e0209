-- One row per try of a queue item. session_queue says what is to be done, job_attempts who is doing it and until when.
-- No foreign key: what was measured outlives an item that its owner deletes.
CREATE TABLE job_attempts (
    item_id bigint NOT NULL,
    attempt_no integer NOT NULL CONSTRAINT job_attempts_attempt_no_counts_from_1 CHECK (attempt_no >= 1),
    user_id text NOT NULL,
    worker_id text NOT NULL,
    state text NOT NULL DEFAULT 'running'
        CONSTRAINT job_attempts_state_is_known CHECK (state IN ('running', 'finished', 'revoked', 'lost')),
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease_until timestamptz NOT NULL,
    ended_at timestamptz,
    gpu_seconds double precision NOT NULL DEFAULT 0 CONSTRAINT job_attempts_gpu_seconds_not_negative CHECK (gpu_seconds >= 0),
    CONSTRAINT job_attempts_pkey PRIMARY KEY (item_id, attempt_no),
    CONSTRAINT job_attempts_ended_unless_running CHECK ((state = 'running') = (ended_at IS NULL))
);
CREATE UNIQUE INDEX job_attempts_one_running ON job_attempts (item_id) WHERE state = 'running';
CREATE INDEX job_attempts_leases ON job_attempts (lease_until) WHERE state = 'running';
CREATE INDEX job_attempts_user_id ON job_attempts (user_id);
-- What the claim walks through.
CREATE INDEX session_queue_claimable ON session_queue (priority DESC, item_id) WHERE status = 'pending';

-- job_attempts: the owner of the job reads how its tries went; workers and the reaper write, as system work.
ALTER TABLE job_attempts ENABLE ROW LEVEL SECURITY;
ALTER TABLE job_attempts FORCE ROW LEVEL SECURITY;
CREATE POLICY job_attempts_system ON job_attempts TO invokeai_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON job_attempts TO invokeai_system;
CREATE POLICY job_attempts_read ON job_attempts FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()));
GRANT SELECT ON job_attempts TO invokeai_app;
