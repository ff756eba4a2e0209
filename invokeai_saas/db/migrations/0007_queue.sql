-- Whose turn it is. One row per user who ever had a job: a claim chooses among users first and among the chosen one's items second, so that
-- its cost follows the number of waiting users and not of waiting items, and the lock of the row keeps two claims off one user.
CREATE TABLE queue_turns (
    user_id text NOT NULL CONSTRAINT queue_turns_pkey PRIMARY KEY,
    -- What the user's plan adds to the minutes waited; plans write it, as system work.
    plan_priority integer NOT NULL DEFAULT 0,
    served_at timestamptz
);

-- By the statement, so that a batch of thousands asks once; as whoever inserts, so that nobody makes another user's row.
CREATE FUNCTION tg_session_queue_has_turns() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO queue_turns (user_id) SELECT DISTINCT user_id FROM added WHERE user_id IS NOT NULL ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER tg_session_queue_has_turns AFTER INSERT ON session_queue REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION tg_session_queue_has_turns();

-- Jobs that are there already. The owner is under the policies too, and has none: it steps out of them for this one statement.
ALTER TABLE session_queue NO FORCE ROW LEVEL SECURITY;
INSERT INTO queue_turns (user_id) SELECT DISTINCT user_id FROM session_queue WHERE user_id IS NOT NULL;
ALTER TABLE session_queue FORCE ROW LEVEL SECURITY;

-- The claim leaps from user to user through this index, and takes each one's next item from it.
CREATE INDEX session_queue_claimable_by_user ON session_queue (user_id, priority DESC, item_id) WHERE status = 'pending';
DROP INDEX session_queue_claimable;

-- queue_turns: a tenant's insert into session_queue makes their own row, and they may read it; the rest is system work.
ALTER TABLE queue_turns ENABLE ROW LEVEL SECURITY;
ALTER TABLE queue_turns FORCE ROW LEVEL SECURITY;
CREATE POLICY queue_turns_system ON queue_turns TO invokeai_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON queue_turns TO invokeai_system;
GRANT SELECT, INSERT (user_id) ON queue_turns TO invokeai_app;
CREATE POLICY queue_turns_read ON queue_turns FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()));
CREATE POLICY queue_turns_insert ON queue_turns FOR INSERT TO invokeai_app
    WITH CHECK (user_id = (SELECT app_user_id()));
