-- Which object of the store belongs to which row, and how much every user holds. Files are written and removed around transactions,
-- never inside them; this table is the journal that lets recovery (storage/recovery.py) finish or undo what a crash left half-done:
--   writing   announced, perhaps uploaded      -> finished when complete, else the row and its objects go
--   stored    uploaded and readable
--   purge     its row is gone, the object perhaps not yet -> the object goes, then this row
-- Triggers announce a picture's or video's file with its row and mark it with the row's deletion, in the same transaction, whoever
-- inserts or deletes it: there is no moment without a trace.
CREATE TABLE stored_objects (
    key text NOT NULL,
    user_id text NOT NULL,
    kind text NOT NULL
        CONSTRAINT stored_objects_kind_is_known CHECK (kind IN ('image', 'video', 'workflow', 'style_preset', 'model')),
    name text NOT NULL,
    part text NOT NULL CONSTRAINT stored_objects_part_is_known CHECK (part IN ('file', 'thumbnail', 'sidecar')),
    bytes bigint NOT NULL CONSTRAINT stored_objects_bytes_not_negative CHECK (bytes >= 0),
    state text NOT NULL DEFAULT 'writing'
        CONSTRAINT stored_objects_state_is_known CHECK (state IN ('writing', 'stored', 'purge')),
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT stored_objects_pkey PRIMARY KEY (key)
);
CREATE UNIQUE INDEX stored_objects_one_stored ON stored_objects (kind, name, part) WHERE state = 'stored';
CREATE INDEX stored_objects_name ON stored_objects (kind, name);
CREATE INDEX stored_objects_user_id ON stored_objects (user_id);
CREATE INDEX stored_objects_unsettled ON stored_objects (state, since) WHERE state <> 'stored';

-- What each user holds, announced writes included: the sum over stored_objects, kept by a trigger under the row's lock.
CREATE TABLE storage_used (
    user_id text NOT NULL CONSTRAINT storage_used_pkey PRIMARY KEY,
    bytes bigint NOT NULL CONSTRAINT storage_used_bytes_not_negative CHECK (bytes >= 0)
);

CREATE FUNCTION storage_count() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    before bigint := CASE WHEN TG_OP <> 'INSERT' AND OLD.state <> 'purge' THEN OLD.bytes ELSE 0 END;
    after bigint := CASE WHEN TG_OP <> 'DELETE' AND NEW.state <> 'purge' THEN NEW.bytes ELSE 0 END;
    whose text := CASE WHEN TG_OP = 'INSERT' THEN NEW.user_id ELSE OLD.user_id END;
    moved integer;
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.user_id <> OLD.user_id THEN
        RAISE EXCEPTION 'a stored object keeps its user' USING ERRCODE = 'check_violation';
    END IF;
    IF before = after THEN
        RETURN NULL;
    END IF;
    INSERT INTO public.storage_used AS used (user_id, bytes) VALUES (whose, 0) ON CONFLICT (user_id) DO NOTHING;
    UPDATE public.storage_used AS used SET bytes = used.bytes + after - before WHERE used.user_id = whose;
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved <> 1 THEN
        RAISE EXCEPTION 'expected to count the storage of one user, counted %', moved;
    END IF;
    RETURN NULL;
END $$;

-- The object of a row of images or videos, as storage/keys.py names it.
CREATE FUNCTION storage_file_key(kind text, user_id text, name text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 'users/' || COALESCE(user_id, 'system') || '/' || kind || 's/' || name;

CREATE FUNCTION storage_announce() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    what text := TG_ARGV[0];
    called text := to_jsonb(NEW) ->> TG_ARGV[1];
    moved integer;
BEGIN
    INSERT INTO public.stored_objects AS stored (key, user_id, kind, name, part, bytes)
    VALUES (public.storage_file_key(what, NEW.user_id, called), COALESCE(NEW.user_id, 'system'), what, called, 'file', 0)
    ON CONFLICT (key) DO UPDATE SET state = 'writing', bytes = 0, since = clock_timestamp() WHERE stored.state = 'purge';
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved <> 1 THEN
        RAISE EXCEPTION 'expected to announce one file of % %, announced %', what, called, moved;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION storage_purge() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    what text := TG_ARGV[0];
    called text := to_jsonb(OLD) ->> TG_ARGV[1];
BEGIN
    UPDATE public.stored_objects AS stored SET state = 'purge', since = clock_timestamp()
    WHERE stored.kind = what AND stored.name = called AND stored.state <> 'purge';
    IF NOT FOUND AND what IN ('image', 'video') THEN
        RAISE EXCEPTION 'expected the files of % % in stored_objects, found none', what, called;
    END IF;
    RETURN NULL;
END $$;

-- Rows that were here before this migration have no file that this store knows; recovery leaves them alone, whoever brings the file
-- announces it. The policies that are forced on the owner too would hide them all.
ALTER TABLE images NO FORCE ROW LEVEL SECURITY;
ALTER TABLE videos NO FORCE ROW LEVEL SECURITY;
INSERT INTO stored_objects (key, user_id, kind, name, part, bytes, since)
    SELECT storage_file_key('image', user_id, image_name), COALESCE(user_id, 'system'), 'image', image_name, 'file', 0,
        'infinity'::timestamptz FROM images
    UNION ALL
    SELECT storage_file_key('video', user_id, video_name), user_id, 'video', video_name, 'file', 0, 'infinity'::timestamptz FROM videos;
ALTER TABLE images FORCE ROW LEVEL SECURITY;
ALTER TABLE videos FORCE ROW LEVEL SECURITY;

CREATE TRIGGER stored_objects_count AFTER INSERT OR UPDATE OR DELETE ON stored_objects
    FOR EACH ROW EXECUTE FUNCTION storage_count();
CREATE TRIGGER images_announce AFTER INSERT ON images FOR EACH ROW EXECUTE FUNCTION storage_announce('image', 'image_name');
CREATE TRIGGER videos_announce AFTER INSERT ON videos FOR EACH ROW EXECUTE FUNCTION storage_announce('video', 'video_name');
CREATE TRIGGER images_purge AFTER DELETE ON images FOR EACH ROW EXECUTE FUNCTION storage_purge('image', 'image_name');
CREATE TRIGGER videos_purge AFTER DELETE ON videos FOR EACH ROW EXECUTE FUNCTION storage_purge('video', 'video_name');
CREATE TRIGGER workflow_library_purge AFTER DELETE ON workflow_library
    FOR EACH ROW EXECUTE FUNCTION storage_purge('workflow', 'workflow_id');
CREATE TRIGGER style_presets_purge AFTER DELETE ON style_presets FOR EACH ROW EXECUTE FUNCTION storage_purge('style_preset', 'id');
CREATE TRIGGER models_purge AFTER DELETE ON models FOR EACH ROW EXECUTE FUNCTION storage_purge('model', 'id');

-- The triggers run in a tenant's transaction, on tables that the tenant may only read.
ALTER FUNCTION storage_count() OWNER TO invokeai_definer;
ALTER FUNCTION storage_announce() OWNER TO invokeai_definer;
ALTER FUNCTION storage_purge() OWNER TO invokeai_definer;
ALTER TABLE stored_objects ENABLE ROW LEVEL SECURITY;
ALTER TABLE stored_objects FORCE ROW LEVEL SECURITY;
ALTER TABLE storage_used ENABLE ROW LEVEL SECURITY;
ALTER TABLE storage_used FORCE ROW LEVEL SECURITY;
CREATE POLICY stored_objects_definer ON stored_objects TO invokeai_definer USING (true) WITH CHECK (true);
CREATE POLICY storage_used_definer ON storage_used TO invokeai_definer USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON stored_objects, storage_used TO invokeai_definer;

-- stored_objects: the owner reads; with sharing on, also who may read the row that it belongs to. The pictures of presets and workflows
-- that upstream ships are files of its package; covers of models are everybody's. Written by storage/journal.py, as system work.
CREATE POLICY stored_objects_system ON stored_objects TO invokeai_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON stored_objects TO invokeai_system;
CREATE POLICY stored_objects_read ON stored_objects FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()) OR kind = 'model' OR ((SELECT app_sharing()) AND CASE kind
        WHEN 'image' THEN EXISTS (SELECT FROM images WHERE images.image_name = stored_objects.name)
        WHEN 'video' THEN EXISTS (SELECT FROM videos WHERE videos.video_name = stored_objects.name)
        WHEN 'workflow' THEN EXISTS (SELECT FROM workflow_library WHERE workflow_library.workflow_id = stored_objects.name)
        WHEN 'style_preset' THEN EXISTS (SELECT FROM style_presets WHERE style_presets.id = stored_objects.name)
        ELSE false END));
GRANT SELECT ON stored_objects TO invokeai_app;

-- storage_used: one's own, to read; only the trigger writes.
CREATE POLICY storage_used_system ON storage_used TO invokeai_system USING (true) WITH CHECK (true);
GRANT SELECT ON storage_used TO invokeai_system;
CREATE POLICY storage_used_read ON storage_used FOR SELECT TO invokeai_app USING (user_id = (SELECT app_user_id()));
GRANT SELECT ON storage_used TO invokeai_app;
