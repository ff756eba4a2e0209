-- Credits: what was granted, what is held for jobs, what was used, and a ledger of it that nobody rewrites.
--
-- Of every grant, at all times: total = available + held + consumed + expired + revoked, and available is never negative. The ledger's
-- lines of a grant add up to available + held. Tenants read their own; only the role invokeai_books writes, by the functions below.
--
--   credits_hold     before a job: draws from the grants that end soonest    (in the transaction that enqueues)
--   credits_settle   however the job ends: consumes what decision 14 charges, gives the rest back in reverse   (trigger of session_queue)
--   credits_grant, credits_take_back, credits_give_back, credits_deduct, credits_expire_due, credits_release_orphans   (system work)
--
-- Who locks: grants of one user in the order of drawing, everywhere; a settlement locks item, attempts, hold, grants.

-- Bounds of single columns are domains: Postgres checks them when a column is written, and parses a table's CHECKs at every statement.
CREATE DOMAIN credit_amount AS integer CONSTRAINT credits_amount_in_bounds CHECK (VALUE BETWEEN 1 AND 10000000);
CREATE DOMAIN credit_source AS text CONSTRAINT credits_source_is_known
    CHECK (VALUE IN ('subscription', 'purchase', 'admin_grant', 'promotion', 'trial'));
CREATE DOMAIN credit_hold_state AS text CONSTRAINT credit_holds_state_is_known CHECK (VALUE IN ('held', 'captured', 'released'));

CREATE TABLE credits (
    credit_id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT credits_pkey PRIMARY KEY,
    user_id text NOT NULL,
    total_credits credit_amount NOT NULL,
    available_credits integer NOT NULL,
    held_credits integer NOT NULL DEFAULT 0,
    consumed_credits integer NOT NULL DEFAULT 0,
    expired_credits integer NOT NULL DEFAULT 0,
    revoked_credits integer NOT NULL DEFAULT 0,
    -- Taken back while it was held for a job: what the job leaves of it is revoked and not given back.
    owed_credits integer NOT NULL DEFAULT 0,
    source credit_source NOT NULL,
    reference_id text,
    valid_from timestamptz NOT NULL,
    valid_until timestamptz NOT NULL,
    expired_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT credits_never_overdrawn CHECK (available_credits >= 0)
-- No index holds a column that a hold changes, and pages have room: a hold's update stays on its page.
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX credits_granted_once ON credits (source, reference_id) WHERE reference_id IS NOT NULL;
-- Decision 16: soonest to end first, then oldest.
CREATE INDEX credits_draw_order ON credits (user_id, valid_until, created_at, credit_id);
CREATE INDEX credits_to_expire ON credits (valid_until) WHERE expired_at IS NULL;

-- Nothing is lost and nothing is made, whoever settles, expires or revokes. A hold, which only moves available to held, pays nothing for it.
CREATE FUNCTION tg_credits_add_up() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF NEW.total_credits <> NEW.available_credits + NEW.held_credits + NEW.consumed_credits + NEW.expired_credits + NEW.revoked_credits
        OR LEAST(NEW.held_credits, NEW.consumed_credits, NEW.expired_credits, NEW.revoked_credits, NEW.owed_credits) < 0
        OR NEW.owed_credits > NEW.held_credits OR NEW.valid_until <= NEW.valid_from THEN
        RAISE EXCEPTION 'expected the parts of grant % to add up to what was granted', NEW.credit_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credits_add_up';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tg_credits_add_up AFTER INSERT OR UPDATE OF total_credits, consumed_credits, expired_credits, revoked_credits, owed_credits
    ON credits FOR EACH ROW EXECUTE FUNCTION tg_credits_add_up();

-- One per root item, for good. No foreign key: the books outlive the queue. The user is in the key, so that nobody takes the place of
-- another user's hold: only the item's owner's is settled with it.
CREATE TABLE credit_holds (
    item_id bigint NOT NULL,
    user_id text NOT NULL,
    amount credit_amount NOT NULL,
    -- The part of `amount` that external providers charge, whatever the seconds; and how much of it their calls came to by now.
    provider_credits integer NOT NULL DEFAULT 0,
    provider_spent integer NOT NULL DEFAULT 0,
    gpu_tier text,
    detail jsonb,
    state credit_hold_state NOT NULL DEFAULT 'held',
    drawn uuid[] NOT NULL,
    drawn_amounts integer[] NOT NULL,
    captured integer NOT NULL DEFAULT 0,
    -- What the called workflows that ended came to.
    child_seconds double precision NOT NULL DEFAULT 0,
    child_started boolean NOT NULL DEFAULT false,
    child_outputs boolean NOT NULL DEFAULT false,
    child_lost boolean NOT NULL DEFAULT false,
    reason text,
    seconds double precision,
    created_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    CONSTRAINT credit_holds_pkey PRIMARY KEY (item_id, user_id)
);
CREATE INDEX credit_holds_open ON credit_holds (user_id) WHERE state = 'held';

-- A hold is settled once, with a reason, for its price at most, and never changes again. A trigger and no CHECK: an insert pays nothing.
CREATE FUNCTION tg_credit_holds_settle_once() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF OLD.state <> 'held' THEN
        RAISE EXCEPTION 'the hold of job % was settled before', OLD.item_id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'credit_holds_settled_once';
    END IF;
    IF (NEW.item_id, NEW.user_id, NEW.amount, NEW.provider_credits, NEW.drawn, NEW.drawn_amounts)
            IS DISTINCT FROM (OLD.item_id, OLD.user_id, OLD.amount, OLD.provider_credits, OLD.drawn, OLD.drawn_amounts)
        OR NOT NEW.captured BETWEEN 0 AND NEW.amount OR NOT NEW.provider_spent BETWEEN 0 AND NEW.provider_credits
        OR (NEW.state = 'captured') <> (NEW.captured > 0)
        OR (NEW.state = 'held') <> (NEW.settled_at IS NULL) OR (NEW.state = 'held') <> (NEW.reason IS NULL) THEN
        RAISE EXCEPTION 'expected the hold of job % to be settled whole, for its price at most', OLD.item_id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'credit_holds_settled_whole';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER tg_credit_holds_settle_once BEFORE UPDATE ON credit_holds FOR EACH ROW EXECUTE FUNCTION tg_credit_holds_settle_once();

CREATE TABLE credit_transactions (
    id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT credit_transactions_pkey PRIMARY KEY,
    user_id text NOT NULL,
    credit_id uuid NOT NULL,
    amount integer NOT NULL CONSTRAINT credit_transactions_moves_something CHECK (amount <> 0),
    transaction_type text NOT NULL CONSTRAINT credit_transactions_type_is_known CHECK (transaction_type IN
        ('generation', 'subscription_renewal', 'purchase', 'admin_grant', 'refund', 'trial', 'expiry', 'promotion')),
    description text NOT NULL,
    reference_id text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX credit_transactions_of_user ON credit_transactions (user_id, created_at DESC, id);
CREATE FUNCTION tg_credit_transactions_is_append_only() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'the ledger of credits is append-only: % refused', TG_OP
        USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'credit_transactions_is_append_only';
END $$;
CREATE TRIGGER tg_credit_transactions_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON credit_transactions
    FOR EACH STATEMENT EXECUTE FUNCTION tg_credit_transactions_is_append_only();

-- Money that went back, and the credits that came with it: once per event of the payment provider.
CREATE TABLE credit_take_backs (
    reference_id text NOT NULL CONSTRAINT credit_take_backs_pkey PRIMARY KEY,
    user_id text NOT NULL,
    credit_id uuid NOT NULL,
    asked integer NOT NULL CONSTRAINT credit_take_backs_asked_in_bounds CHECK (asked BETWEEN 1 AND 10000000),
    taken integer NOT NULL,
    owed integer NOT NULL,
    recovered integer NOT NULL DEFAULT 0,
    reason text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    undone_at timestamptz,
    CONSTRAINT credit_take_backs_within_asked CHECK (taken >= 0 AND recovered BETWEEN 0 AND owed AND taken + owed <= asked)
);
CREATE INDEX credit_take_backs_of_grant ON credit_take_backs (credit_id, created_at);
CREATE INDEX credit_take_backs_user_id ON credit_take_backs (user_id);

-- S3-020, X-45. One per settled item; compute_seconds is what was measured, also beyond what was charged.
CREATE TABLE usage_records (
    id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT usage_records_pkey PRIMARY KEY,
    user_id text NOT NULL,
    job_id text NOT NULL,
    action_type text NOT NULL CONSTRAINT usage_records_action_type_is_known CHECK (action_type IN ('txt2img', 'img2img', 'inpaint',
        'upscale', 'controlnet', 'txt2vid', 'img2vid', 'vid2vid', 'product_video', 'story', 'other')),
    model_used text NOT NULL,
    gpu_tier text NOT NULL,
    steps integer,
    width integer,
    height integer,
    batch_size integer,
    compute_seconds double precision NOT NULL,
    credits_held integer NOT NULL,
    credits_consumed integer NOT NULL,
    provider_credits integer NOT NULL,
    outcome text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT usage_records_one_per_job UNIQUE (job_id, user_id)
);
CREATE INDEX usage_records_of_user ON usage_records (user_id, created_at);
CREATE INDEX usage_records_created_at ON usage_records (created_at);

-- What a failed or lost item left is looked for by its session.
CREATE INDEX images_session_id ON images (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX videos_session_id ON videos (session_id) WHERE session_id IS NOT NULL;

DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['credits', 'credit_holds', 'credit_transactions', 'credit_take_backs', 'usage_records'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format('CREATE POLICY %I ON %I TO invokeai_books USING (true) WITH CHECK (true)', table_name || '_books', table_name);
        -- The system looks; it writes by the functions only.
        EXECUTE format('CREATE POLICY %I ON %I FOR SELECT TO invokeai_system USING (true)', table_name || '_system', table_name);
        EXECUTE format('CREATE POLICY %I ON %I FOR SELECT TO invokeai_app USING (user_id = (SELECT app_user_id()))',
            table_name || '_read', table_name);
        EXECUTE format('GRANT SELECT ON %I TO invokeai_books, invokeai_system, invokeai_app', table_name);
    END LOOP;
END $$;
GRANT INSERT, UPDATE ON credits, credit_holds, credit_take_backs, usage_records TO invokeai_books;
GRANT INSERT ON credit_transactions TO invokeai_books;
-- What a settlement reads and, of an item that the operator lost, removes. Row locks want the right to update.
CREATE POLICY session_queue_books ON session_queue FOR SELECT TO invokeai_books USING (true);
CREATE POLICY job_attempts_books ON job_attempts TO invokeai_books USING (true);
CREATE POLICY images_books ON images TO invokeai_books USING (true);
CREATE POLICY videos_books ON videos TO invokeai_books USING (true);
GRANT SELECT ON session_queue TO invokeai_books;
GRANT SELECT, UPDATE (state) ON job_attempts TO invokeai_books;
GRANT SELECT, DELETE ON images, videos TO invokeai_books;

-- When the books look at the clock: the transaction's begin. A test of validity puts its own clock here.
CREATE FUNCTION credits_now() RETURNS timestamptz LANGUAGE sql STABLE RETURN now();

-- All of the items get their hold, or none and credits_insufficient is raised with what is left and what was asked. A tenant holds for
-- themself; who asks is still to be seen in the setting of SET ROLE. The usual case is one item and one grant that covers it: one
-- statement, two rows. The update looks at the newest row, also after it waited for it.
CREATE FUNCTION credits_hold(
    p_user text, p_item bigint[], p_amount integer[], p_provider integer[], p_tier text[], p_detail jsonb[]
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    item bigint := p_item[1];
    wanted integer := p_amount[1];
BEGIN
    IF p_user IS DISTINCT FROM app_user_id() AND current_setting('role') <> 'invokeai_system' THEN
        RAISE EXCEPTION 'these credits are another user''s' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF cardinality(p_item) = 1 AND cardinality(p_amount) = 1 THEN
        WITH drawn AS (
            UPDATE credits SET held_credits = held_credits + wanted, available_credits = available_credits - wanted
            WHERE credit_id = (
                SELECT credit_id FROM credits WHERE user_id = p_user AND valid_until > credits_now() AND valid_from <= credits_now()
                    AND available_credits > 0
                ORDER BY valid_until, created_at, credit_id LIMIT 1
            ) AND available_credits >= wanted
            RETURNING credit_id
        )
        INSERT INTO credit_holds (item_id, user_id, amount, provider_credits, gpu_tier, detail, drawn, drawn_amounts)
        SELECT item, p_user, wanted, COALESCE(p_provider[1], 0), p_tier[1], p_detail[1], ARRAY[credit_id], p_amount FROM drawn;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    PERFORM credits_hold_across_grants(p_user, p_item, p_amount, p_provider, p_tier, p_detail);
END $$;

-- The rows are locked in the order of drawing until they suffice; what is drawn from each is written once, at the end.
CREATE FUNCTION credits_hold_across_grants(
    p_user text, p_item bigint[], p_amount integer[], p_provider integer[], p_tier text[], p_detail jsonb[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wanted bigint := (SELECT sum(amount) FROM unnest(p_amount) AS amount);
    had bigint := 0;
    open record;
    ids uuid[] := '{}';
    left_in integer[] := '{}';
    place integer := 1;
    missing integer;
    part integer;
    drawn uuid[];
    amounts integer[];
BEGIN
    IF cardinality(p_item) <> cardinality(p_amount) OR 0 >= ANY(p_amount) THEN
        RAISE EXCEPTION 'expected an amount for each item' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR open IN
        SELECT credit_id, available_credits AS available FROM credits
        WHERE user_id = p_user AND valid_until > credits_now() AND valid_from <= credits_now()
            AND available_credits > 0
        ORDER BY valid_until, created_at, credit_id FOR UPDATE
    LOOP
        ids := ids || open.credit_id;
        left_in := left_in || LEAST(open.available, wanted - had)::integer;
        had := had + LEAST(open.available, wanted - had);
        EXIT WHEN had >= wanted;
    END LOOP;
    IF had < wanted THEN
        RAISE EXCEPTION 'expected % credits, got %', wanted, had USING ERRCODE = 'check_violation', CONSTRAINT = 'credits_insufficient',
            DETAIL = json_build_object('remaining', had, 'required', wanted)::text;
    END IF;
    UPDATE credits SET held_credits = held_credits + take.amount, available_credits = available_credits - take.amount
    FROM unnest(ids, left_in) AS take (credit_id, amount) WHERE credits.credit_id = take.credit_id;
    FOR number IN 1 .. cardinality(p_item) LOOP
        drawn := '{}';
        amounts := '{}';
        missing := p_amount[number];
        WHILE missing > 0 LOOP
            part := LEAST(missing, left_in[place]);
            drawn := drawn || ids[place];
            amounts := amounts || part;
            missing := missing - part;
            left_in[place] := left_in[place] - part;
            IF left_in[place] = 0 THEN
                place := place + 1;
            END IF;
        END LOOP;
        INSERT INTO credit_holds (item_id, user_id, amount, provider_credits, gpu_tier, detail, drawn, drawn_amounts)
        VALUES (p_item[number], p_user, p_amount[number], COALESCE(p_provider[number], 0), p_tier[number], p_detail[number], drawn, amounts);
    END LOOP;
END $$;

-- A call to an external provider was made: what it cost is charged also when the job does not come to its end.
CREATE FUNCTION credits_provider_called(p_item bigint, p_credits integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE credit_holds SET provider_spent = LEAST(provider_credits, provider_spent + GREATEST(p_credits, 0))
    WHERE state = 'held' AND item_id = (SELECT COALESCE(root_item_id, item_id) FROM session_queue WHERE item_id = p_item)
        AND (user_id = app_user_id() OR current_setting('role') = 'invokeai_system');
END $$;

-- An item that ends, as the triggers see it.
CREATE TYPE credits_ending AS (
    item_id bigint, root_item_id bigint, user_id text, session_id text, was text, becomes text, error_type text
);

-- Seconds of the attempts that count: those that finished, and of an item that runs the last one, as of its last heartbeat. A lost
-- attempt, and one whose worker gave the item back, are the operator's.
CREATE FUNCTION credits_measure(p_item bigint, p_runs boolean, OUT seconds double precision, OUT started boolean) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM job_attempts WHERE item_id = p_item FOR SHARE;
    SELECT COALESCE(sum(gpu_seconds), 0), count(*) > 0 INTO seconds, started
    FROM (SELECT *, attempt_no = max(attempt_no) OVER () AS is_last FROM job_attempts WHERE item_id = p_item) AS attempt
    WHERE state = 'finished' OR (p_runs AND is_last AND state IN ('running', 'revoked'));
END $$;

-- What an ended item, or one of its called workflows, left in the gallery.
CREATE FUNCTION credits_left_outputs(p_sessions text[]) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM images WHERE session_id = ANY(p_sessions) AND is_intermediate = 0)
        OR EXISTS (SELECT FROM videos WHERE session_id = ANY(p_sessions) AND is_intermediate = 0)
$$;

-- Worker lost, storage or database down: by the names that jobs/lease.py and Python's classes give.
CREATE FUNCTION credits_is_operators_error(p_error text) RETURNS boolean LANGUAGE sql IMMUTABLE
RETURN COALESCE(p_error IN ('WorkerLost', 'StorageUnavailable', 'StorageRefused', 'ImageFileSaveException', 'VideoFileSaveException',
    'DatabaseUnavailable', 'Unavailable', 'OperationalError', 'PoolTimeout'), false);

-- Called workflows draw on their root's hold: their seconds are noted there when they end. A root that ended before takes no more.
CREATE FUNCTION credits_note_children(p_endings credits_ending[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    child credits_ending;
    used record;
BEGIN
    FOREACH child IN ARRAY p_endings LOOP
        SELECT * INTO used FROM credits_measure(child.item_id, child.was = 'in_progress');
        UPDATE credit_holds SET child_seconds = child_seconds + used.seconds, child_started = child_started OR used.started,
            child_outputs = child_outputs OR credits_left_outputs(ARRAY[child.session_id]),
            child_lost = child_lost OR (child.becomes = 'failed' AND credits_is_operators_error(child.error_type))
        WHERE item_id = child.root_item_id AND user_id = child.user_id AND state = 'held';
    END LOOP;
END $$;

-- Decision 14: what an ended item is charged, and why.
CREATE FUNCTION credits_charge(
    p_hold credit_holds, p_ending credits_ending, p_sessions text[], p_seconds double precision, p_started boolean,
    OUT charge integer, OUT reason text
) LANGUAGE plpgsql AS $$
DECLARE
    measured integer := LEAST(p_hold.amount - p_hold.provider_credits, GREATEST(1, ceil(p_seconds)))
        + CASE p_ending.becomes WHEN 'completed' THEN p_hold.provider_credits ELSE p_hold.provider_spent END;
BEGIN
    IF p_ending.becomes = 'completed' THEN
        charge := measured; reason := 'completed';
    ELSIF p_ending.becomes = 'orphaned' THEN
        charge := 0; reason := 'orphaned';
    ELSIF p_ending.becomes = 'failed' AND (p_hold.child_lost OR credits_is_operators_error(p_ending.error_type)) THEN
        charge := 0; reason := 'operator_failed';
    ELSIF NOT p_started THEN
        charge := 0; reason := 'not_started';
    ELSIF p_ending.becomes <> 'failed' THEN
        charge := measured; reason := p_ending.becomes;
    ELSIF p_hold.child_outputs OR credits_left_outputs(p_sessions) THEN
        charge := measured; reason := 'failed_with_outputs';
    ELSIF (SELECT count(*) FROM usage_records AS earlier WHERE earlier.user_id = p_hold.user_id
            AND earlier.outcome IN ('failed_empty', 'failed_too_often') AND earlier.created_at > credits_now() - interval '1 hour') >= 5 THEN
        charge := measured; reason := 'failed_too_often';
    ELSE
        charge := 0; reason := 'failed_empty';
    END IF;
END $$;

-- The holds of these ended root items become charges: hold, grants, ledger, usage record, all of them or an error. An item without a hold
-- (from before the metering) has nothing to settle.
CREATE FUNCTION credits_settle(p_endings credits_ending[]) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    ending credits_ending;
    held credit_holds;
    child record;
    verdict record;
    measured_seconds double precision;
    was_started boolean;
    sessions text[];
    items bigint[] := '{}';
    users text[] := '{}';
    moved integer;
BEGIN
    -- All of the users' grants that a hold may touch, in the order in which holds lock them; it also counts their failures one by one.
    PERFORM FROM credits WHERE user_id IN (
            SELECT holds.user_id FROM unnest(p_endings) AS ended JOIN credit_holds AS holds USING (item_id, user_id) WHERE state = 'held')
        AND (valid_until > credits_now() OR held_credits > 0)
        ORDER BY user_id, valid_until, created_at, credit_id FOR UPDATE;
    FOREACH ending IN ARRAY p_endings LOOP
        SELECT * INTO held FROM credit_holds WHERE item_id = ending.item_id AND user_id = ending.user_id AND state = 'held' FOR UPDATE;
        CONTINUE WHEN NOT FOUND;
        SELECT used.seconds + held.child_seconds, used.started OR held.child_started INTO measured_seconds, was_started
        FROM credits_measure(ending.item_id, ending.was = 'in_progress') AS used;
        sessions := ARRAY[ending.session_id];
        FOR child IN SELECT item_id, status, session_id FROM session_queue WHERE root_item_id = ending.item_id LOOP
            sessions := sessions || child.session_id;
            IF child.status IN ('pending', 'in_progress', 'waiting') THEN
                SELECT measured_seconds + used.seconds, was_started OR used.started INTO measured_seconds, was_started
                FROM credits_measure(child.item_id, child.status = 'in_progress') AS used;
            END IF;
        END LOOP;
        SELECT * INTO verdict FROM credits_charge(held, ending, sessions, measured_seconds, was_started);
        UPDATE credit_holds SET state = CASE verdict.charge WHEN 0 THEN 'released' ELSE 'captured' END, captured = verdict.charge,
            reason = verdict.reason, seconds = measured_seconds, settled_at = clock_timestamp()
        WHERE item_id = ending.item_id AND user_id = ending.user_id AND state = 'held';
        GET DIAGNOSTICS moved = ROW_COUNT;
        IF moved <> 1 THEN
            RAISE EXCEPTION 'expected to settle one hold of item %, settled %', ending.item_id, moved;
        END IF;
        IF verdict.reason = 'operator_failed' THEN
            DELETE FROM images WHERE session_id = ANY(sessions) AND user_id = ending.user_id;
            DELETE FROM videos WHERE session_id = ANY(sessions) AND user_id = ending.user_id;
        END IF;
        PERFORM credits_note_usage(ending.item_id, ending.user_id);
        items := items || ending.item_id;
        users := users || ending.user_id;
    END LOOP;
    IF cardinality(items) > 0 THEN
        PERFORM credits_apply(items, users);
    END IF;
    RETURN cardinality(items);
END $$;

-- What settled holds consumed leaves their grants in the order of drawing; the rest goes back in reverse. Of what goes back, a grant that
-- owes keeps nothing until it is even, and one that has ended expires it: never lost from the books.
CREATE FUNCTION credits_apply(p_items bigint[], p_users text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wanted integer;
    moved integer;
    debt record;
BEGIN
    WITH split AS (
        SELECT hold.item_id, hold.user_id, draw.credit_id, draw.amount,
            GREATEST(0, LEAST(draw.amount, hold.captured - sum(draw.amount) OVER (PARTITION BY hold.item_id ORDER BY place) + draw.amount))
                ::integer AS used
        FROM unnest(p_items, p_users) AS ended (item_id, user_id) JOIN credit_holds AS hold USING (item_id, user_id)
        CROSS JOIN LATERAL unnest(drawn, drawn_amounts) WITH ORDINALITY AS draw (credit_id, amount, place)
    ), freed AS (
        SELECT credit_id, sum(amount)::integer AS amount, sum(used)::integer AS used FROM split GROUP BY credit_id
    ), parts AS (
        SELECT freed.*, grants.user_id, LEAST(grants.owed_credits, freed.amount - used) AS recovered,
            CASE WHEN grants.valid_until <= credits_now()
                THEN freed.amount - used - LEAST(grants.owed_credits, freed.amount - used) ELSE 0 END AS expired
        FROM freed JOIN credits AS grants USING (credit_id)
    ), moving AS (
        UPDATE credits SET held_credits = held_credits - amount, consumed_credits = consumed_credits + used,
            revoked_credits = revoked_credits + recovered, expired_credits = expired_credits + parts.expired,
            available_credits = available_credits + amount - used - recovered - parts.expired,
            owed_credits = LEAST(owed_credits - recovered, held_credits - amount)
        FROM parts WHERE credits.credit_id = parts.credit_id
        RETURNING credits.credit_id
    ), ledger AS (
        INSERT INTO credit_transactions (user_id, credit_id, amount, transaction_type, description, reference_id)
        SELECT user_id, credit_id, -used, 'generation', 'job ' || item_id, item_id::text FROM split WHERE used > 0
        UNION ALL
        SELECT user_id, credit_id, -recovered, 'refund', 'taken back when a job let go of it', NULL FROM parts WHERE recovered > 0
        UNION ALL
        SELECT user_id, credit_id, -expired, 'expiry', 'ended while it was held for a job', NULL FROM parts WHERE expired > 0
    )
    SELECT (SELECT count(*) FROM freed), (SELECT count(*) FROM moving) INTO wanted, moved;
    IF moved <> wanted OR wanted = 0 THEN
        RAISE EXCEPTION 'expected to settle with % grants, settled with %', wanted, moved;
    END IF;
    FOR debt IN SELECT DISTINCT credit_id FROM credit_take_backs WHERE recovered < owed AND undone_at IS NULL
            AND credit_id IN (SELECT unnest(drawn) FROM unnest(p_items, p_users) AS ended (item_id, user_id)
                JOIN credit_holds USING (item_id, user_id)) LOOP
        PERFORM credits_note_recovered(debt.credit_id);
    END LOOP;
END $$;

-- What a grant has revoked beyond what its take-backs took at once was recovered for them, oldest first.
CREATE FUNCTION credits_note_recovered(p_credit uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    spare integer := (SELECT revoked_credits FROM credits WHERE credit_id = p_credit)
        - COALESCE((SELECT sum(taken + recovered) FROM credit_take_backs WHERE credit_id = p_credit AND undone_at IS NULL), 0)
        + COALESCE((SELECT sum(amount) FROM credit_transactions WHERE credit_id = p_credit AND transaction_type = 'admin_grant' AND amount < 0), 0);
    debt record;
BEGIN
    FOR debt IN SELECT reference_id, owed - recovered AS open FROM credit_take_backs
            WHERE credit_id = p_credit AND recovered < owed AND undone_at IS NULL ORDER BY created_at FOR UPDATE LOOP
        EXIT WHEN spare <= 0;
        UPDATE credit_take_backs SET recovered = recovered + LEAST(spare, debt.open) WHERE reference_id = debt.reference_id;
        spare := spare - LEAST(spare, debt.open);
    END LOOP;
END $$;

CREATE FUNCTION credits_detail_integer(p_detail jsonb, p_key text) RETURNS integer LANGUAGE sql IMMUTABLE
RETURN CASE WHEN jsonb_typeof(p_detail -> p_key) = 'number' AND (p_detail ->> p_key)::numeric BETWEEN 0 AND 2147483647
    THEN (p_detail ->> p_key)::numeric::integer END;

CREATE FUNCTION credits_note_usage(p_item bigint, p_user text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO usage_records (user_id, job_id, action_type, model_used, gpu_tier, steps, width, height, batch_size, compute_seconds,
        credits_held, credits_consumed, provider_credits, outcome)
    SELECT user_id, item_id::text,
        CASE WHEN detail ->> 'action_type' IN ('txt2img', 'img2img', 'inpaint', 'upscale', 'controlnet', 'txt2vid', 'img2vid', 'vid2vid',
            'product_video', 'story') THEN detail ->> 'action_type' ELSE 'other' END,
        COALESCE(detail ->> 'model_used', 'unknown'), COALESCE(gpu_tier, 'unknown'),
        credits_detail_integer(detail, 'steps'), credits_detail_integer(detail, 'width'), credits_detail_integer(detail, 'height'),
        credits_detail_integer(detail, 'batch_size'), seconds, amount, captured,
        CASE WHEN captured = 0 THEN 0 WHEN reason = 'completed' THEN provider_credits ELSE provider_spent END, reason
    FROM credit_holds WHERE item_id = p_item AND user_id = p_user
$$;

-- The triggers see whole statements, so that clearing thousands of items touches each grant once. Postgres gives both tables in any order;
-- a statement changes no item_id. Called workflows first: a root that ends in the same statement is charged for them.
CREATE FUNCTION tg_session_queue_settles_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    before text[] := ARRAY(SELECT status FROM gone ORDER BY item_id);
    ended credits_ending[];
BEGIN
    IF before = ARRAY(SELECT status FROM came ORDER BY item_id) THEN
        RETURN NULL;
    END IF;
    ended := ARRAY(
        SELECT ROW(item_id, root_item_id, user_id, session_id, was, status, error_type)::credits_ending
        FROM (SELECT *, before[row_number() OVER (ORDER BY item_id)] AS was FROM came) AS changed
        WHERE was IS DISTINCT FROM status ORDER BY item_id);
    IF EXISTS (SELECT FROM unnest(ended) AS back JOIN credit_holds USING (item_id, user_id)
            WHERE back.becomes NOT IN ('completed', 'failed', 'canceled') AND state <> 'held') THEN
        RAISE EXCEPTION 'a job that has ended and was settled cannot run again' USING ERRCODE = 'integrity_constraint_violation',
            CONSTRAINT = 'credit_holds_settled_once';
    END IF;
    ended := ARRAY(SELECT each FROM unnest(ended) AS each
        WHERE becomes IN ('completed', 'failed', 'canceled') AND was NOT IN ('completed', 'failed', 'canceled'));
    PERFORM credits_note_children(ARRAY(SELECT each FROM unnest(ended) AS each WHERE root_item_id IS NOT NULL));
    PERFORM credits_settle(ARRAY(SELECT each FROM unnest(ended) AS each WHERE root_item_id IS NULL));
    RETURN NULL;
END $$;

-- A job that its owner removes while it waits or runs is canceled by that; of one that has ended nothing is open.
CREATE FUNCTION tg_session_queue_settles_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    ended credits_ending[] := ARRAY(
        SELECT ROW(item_id, root_item_id, user_id, session_id, status, 'deleted', error_type)::credits_ending FROM gone
        WHERE status NOT IN ('completed', 'failed', 'canceled') ORDER BY item_id);
BEGIN
    PERFORM credits_note_children(ARRAY(SELECT each FROM unnest(ended) AS each WHERE root_item_id IS NOT NULL));
    PERFORM credits_settle(ARRAY(SELECT each FROM unnest(ended) AS each WHERE root_item_id IS NULL));
    RETURN NULL;
END $$;
CREATE TRIGGER tg_session_queue_settles_update AFTER UPDATE ON session_queue REFERENCING OLD TABLE AS gone NEW TABLE AS came
    FOR EACH STATEMENT EXECUTE FUNCTION tg_session_queue_settles_update();
CREATE TRIGGER tg_session_queue_settles_delete AFTER DELETE ON session_queue REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION tg_session_queue_settles_delete();

-- Returns whether it was the first grant of this source and reference; a second one of another user or amount is an error.
CREATE FUNCTION credits_grant(
    p_user text, p_credits integer, p_source text, p_from timestamptz, p_until timestamptz, p_description text, p_reference text
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    made uuid;
BEGIN
    IF p_until <= p_from THEN
        RAISE EXCEPTION 'expected a window that ends after it begins' USING ERRCODE = 'check_violation',
            CONSTRAINT = 'credits_window_runs_forward';
    END IF;
    IF p_until <= credits_now() THEN
        RAISE EXCEPTION 'expected a window that has not ended' USING ERRCODE = 'check_violation', CONSTRAINT = 'credits_window_not_past';
    END IF;
    INSERT INTO credits (user_id, total_credits, available_credits, source, reference_id, valid_from, valid_until)
    VALUES (p_user, p_credits, p_credits, p_source, p_reference, p_from, p_until)
    ON CONFLICT (source, reference_id) WHERE reference_id IS NOT NULL DO NOTHING RETURNING credit_id INTO made;
    IF made IS NULL THEN
        IF NOT EXISTS (SELECT FROM credits WHERE source = p_source AND reference_id = p_reference AND user_id = p_user
                AND total_credits = p_credits) THEN
            RAISE EXCEPTION 'this reference was granted to another user, or another amount' USING ERRCODE = 'check_violation',
                CONSTRAINT = 'credits_reference_means_one_grant';
        END IF;
        RETURN false;
    END IF;
    INSERT INTO credit_transactions (user_id, credit_id, amount, transaction_type, description, reference_id)
    VALUES (p_user, made, p_credits, CASE p_source WHEN 'subscription' THEN 'subscription_renewal' ELSE p_source END, p_description, p_reference);
    RETURN true;
END $$;

-- A refund or dispute: takes what the grant has, notes as owed what a job holds of it, forgives what was used. Once per p_key.
CREATE FUNCTION credits_take_back(
    p_user text, p_credits integer, p_source text, p_reference text, p_key text, p_reason text, OUT first boolean, OUT taken integer, OUT owed integer
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    from_grant credits;
BEGIN
    SELECT * INTO from_grant FROM credits WHERE user_id = p_user AND source = p_source AND reference_id = p_reference FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'expected a grant with this reference' USING ERRCODE = 'check_violation', CONSTRAINT = 'credits_no_such_grant';
    END IF;
    SELECT false, earlier.taken, earlier.owed INTO first, taken, owed FROM credit_take_backs AS earlier WHERE reference_id = p_key;
    IF FOUND THEN
        RETURN;
    END IF;
    first := true;
    taken := LEAST(p_credits, from_grant.available_credits);
    owed := LEAST(p_credits - taken, from_grant.held_credits - from_grant.owed_credits);
    INSERT INTO credit_take_backs (reference_id, user_id, credit_id, asked, taken, owed, reason)
    VALUES (p_key, p_user, from_grant.credit_id, p_credits, taken, owed, p_reason);
    UPDATE credits SET available_credits = available_credits - credits_take_back.taken,
        revoked_credits = revoked_credits + credits_take_back.taken, owed_credits = owed_credits + credits_take_back.owed
    WHERE credit_id = from_grant.credit_id;
    IF taken > 0 THEN
        INSERT INTO credit_transactions (user_id, credit_id, amount, transaction_type, description, reference_id)
        VALUES (p_user, from_grant.credit_id, -taken, 'refund', p_reason, p_key);
    END IF;
END $$;

-- A dispute that was won: what was taken for it comes back, to the same grant; into one that has ended, as expired. Returns how much, once.
CREATE FUNCTION credits_give_back(p_key text, p_reason text) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    undone credit_take_backs;
    ended boolean;
BEGIN
    PERFORM FROM credits WHERE credit_id = (SELECT credit_id FROM credit_take_backs WHERE reference_id = p_key) FOR UPDATE;
    SELECT * INTO undone FROM credit_take_backs WHERE reference_id = p_key AND undone_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    UPDATE credit_take_backs SET undone_at = clock_timestamp() WHERE reference_id = p_key;
    UPDATE credits SET revoked_credits = revoked_credits - undone.taken - undone.recovered,
        owed_credits = GREATEST(0, owed_credits - (undone.owed - undone.recovered)),
        expired_credits = expired_credits + CASE WHEN valid_until <= credits_now() THEN undone.taken + undone.recovered ELSE 0 END,
        available_credits = available_credits + CASE WHEN valid_until <= credits_now() THEN 0 ELSE undone.taken + undone.recovered END
    WHERE credit_id = undone.credit_id RETURNING valid_until <= credits_now() INTO ended;
    IF undone.taken + undone.recovered > 0 THEN
        INSERT INTO credit_transactions (user_id, credit_id, amount, transaction_type, description, reference_id)
        SELECT undone.user_id, undone.credit_id, sign * (undone.taken + undone.recovered), kind, p_reason, p_key
        FROM (VALUES (1, 'refund', true), (-1, 'expiry', ended)) AS line (sign, kind, wanted) WHERE wanted;
    END IF;
    RETURN undone.taken + undone.recovered;
END $$;

-- An administrator takes credits away: from what is available now, in the order of drawing, all or none.
CREATE FUNCTION credits_deduct(p_user text, p_credits integer, p_description text, p_reference text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    open record;
    missing integer := p_credits;
BEGIN
    FOR open IN
        SELECT credit_id, available_credits AS available FROM credits
        WHERE user_id = p_user AND valid_until > credits_now() AND valid_from <= credits_now()
            AND available_credits > 0
        ORDER BY valid_until, created_at, credit_id FOR UPDATE
    LOOP
        EXIT WHEN missing = 0;
        UPDATE credits SET revoked_credits = revoked_credits + LEAST(missing, open.available),
            available_credits = available_credits - LEAST(missing, open.available) WHERE credit_id = open.credit_id;
        INSERT INTO credit_transactions (user_id, credit_id, amount, transaction_type, description, reference_id)
        VALUES (p_user, open.credit_id, -LEAST(missing, open.available), 'admin_grant', p_description, p_reference);
        missing := missing - LEAST(missing, open.available);
    END LOOP;
    IF missing > 0 THEN
        RAISE EXCEPTION 'expected % credits, got %', p_credits, p_credits - missing USING ERRCODE = 'check_violation',
            CONSTRAINT = 'credits_insufficient', DETAIL = json_build_object('remaining', p_credits - missing, 'required', p_credits)::text;
    END IF;
END $$;

-- What is left of grants that have ended expires; what jobs hold of them follows when it is let go. Grants that somebody is working with
-- are passed over until the next time. Returns the lines of the ledger.
CREATE FUNCTION credits_expire_due() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    lines integer;
BEGIN
    WITH due AS (
        SELECT credit_id, available_credits AS rest FROM credits
        WHERE expired_at IS NULL AND valid_until <= credits_now() ORDER BY user_id, valid_until, created_at, credit_id LIMIT 1000
        FOR UPDATE SKIP LOCKED
    ), ended AS (
        UPDATE credits SET available_credits = 0, expired_credits = expired_credits + rest, expired_at = credits_now() FROM due
        WHERE credits.credit_id = due.credit_id RETURNING credits.user_id, credits.credit_id, rest
    )
    INSERT INTO credit_transactions (user_id, credit_id, amount, transaction_type, description)
    SELECT user_id, credit_id, -rest, 'expiry', 'the time of these credits is over' FROM ended WHERE rest > 0;
    GET DIAGNOSTICS lines = ROW_COUNT;
    RETURN lines;
END $$;

-- Decision 15: a hold whose job is gone, or has ended without the triggers, goes back. It should find none: returns how many there were.
CREATE FUNCTION credits_release_orphans(p_older_than interval) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    orphans credits_ending[] := ARRAY(
        SELECT ROW(item_id, NULL, user_id, '', 'gone', 'orphaned', NULL)::credits_ending FROM credit_holds
        WHERE state = 'held' AND created_at < clock_timestamp() - p_older_than AND NOT EXISTS (SELECT FROM session_queue AS item
            WHERE item.item_id = credit_holds.item_id AND item.user_id = credit_holds.user_id AND item.root_item_id IS NULL
                AND item.status IN ('pending', 'in_progress', 'waiting'))
        ORDER BY item_id LIMIT 1000);
BEGIN
    RETURN credits_settle(orphans);
END $$;

-- A worker may beat once more after its job was canceled: those seconds are nobody's charge, and belong to the measurements.
CREATE FUNCTION credits_note_late_seconds(p_since timestamptz) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    moved integer;
BEGIN
    UPDATE usage_records SET compute_seconds = late.seconds
    FROM (SELECT item_id, sum(gpu_seconds) AS seconds FROM job_attempts
        WHERE heartbeat_at >= p_since AND state <> 'lost' GROUP BY item_id) AS late
    WHERE job_id = late.item_id::text AND compute_seconds < late.seconds AND usage_records.created_at >= p_since;
    GET DIAGNOSTICS moved = ROW_COUNT;
    RETURN moved;
END $$;

-- All of it belongs to the books; tenants hold for themselves, the system does the rest, and nobody calls what lies beneath.
DO $$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT oid::regprocedure AS signature, proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            AND (proname LIKE 'credits\_%' OR proname LIKE 'tg\_session\_queue\_settles\_%') LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', made.signature);
        IF made.proname IN ('credits_hold', 'credits_provider_called', 'credits_now') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO invokeai_app', made.signature);
        END IF;
        IF made.proname IN ('credits_hold', 'credits_provider_called', 'credits_now', 'credits_grant', 'credits_take_back',
                'credits_give_back', 'credits_deduct', 'credits_expire_due', 'credits_release_orphans', 'credits_note_late_seconds') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO invokeai_system', made.signature);
        END IF;
        EXECUTE format('ALTER FUNCTION %s OWNER TO invokeai_books', made.signature);
    END LOOP;
END $$;
ALTER TYPE credits_ending OWNER TO invokeai_books;
